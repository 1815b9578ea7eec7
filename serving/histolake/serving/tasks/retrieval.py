"""Retrieve: the references nearest to a query, exactly (Loki Retrieve; METHODS 1.3.4: k* = argmax_k sim(I_q, I_k)).

FAISS proposes candidates fast; `scoring` decides among them, so the answer is that of the brute force and the same on
every machine. Memory is that of the references (float32) plus one block of candidates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from histolake.platform.errors import UsageError
from histolake.serving.tasks.scoring import best_rows, rescore, unit_rows

__all__ = ["ExactIndex", "Hits", "retrieve"]

# Two float32 sums of one dot product of unit vectors differ by less than this, however they are ordered.
ROUNDING = 1e-5
# Candidates asked beyond k, to see at once whether the k-th has rivals within rounding.
MARGIN = 16


@dataclass(frozen=True, kw_only=True)
class Hits:
    """The nearest references of each query, best first."""

    rows_NK: np.ndarray  # int64, rows of the reference
    scores_NK: np.ndarray  # float32, cosine, -1 to 1


class ExactIndex:
    """References made ready for many searches. `vectors_MD` are the unit rows that are compared."""

    def __init__(self, reference_MD: np.ndarray) -> None:
        import faiss

        self.vectors_MD = unit_rows("reference", reference_MD)
        self._flat: Any = faiss.IndexFlatIP(self.vectors_MD.shape[1])
        self._flat.add(self.vectors_MD)

    def __len__(self) -> int:
        return len(self.vectors_MD)

    def search(self, query_ND: np.ndarray, k: int, keep_M: np.ndarray | None = None) -> Hits:
        """The k nearest of the references that `keep_M` (bool) leaves; see `retrieve`."""
        query_ND = unit_rows("query", query_ND, self.vectors_MD.shape[1])
        left = self._count(keep_M)
        if not 1 <= k <= left:
            raise UsageError(
                f"{k} nearest were asked for, but there are {left} references to choose from; ask for 1 to {left}."
            )
        rows_NK = np.empty((len(query_ND), k), dtype=np.int64)
        scores_NK = np.empty((len(query_ND), k), dtype=np.float32)
        open_rows = np.arange(len(query_ND))
        asked = min(left, k + MARGIN)
        while len(open_rows):
            rough, candidates = self._flat.search(query_ND[open_rows], asked, params=_selector(keep_M))
            # Settled when nothing beyond the candidates can reach the k-th score.
            settled = (rough[:, k - 1] - rough[:, -1] > ROUNDING) | (asked == left)
            done = open_rows[settled]
            scores = rescore(query_ND[done], self.vectors_MD, candidates[settled])
            rows_NK[done], scores_NK[done] = best_rows(scores, candidates[settled], k)
            open_rows = open_rows[~settled]
            asked = min(left, asked * 4)
        return Hits(rows_NK=rows_NK, scores_NK=scores_NK)

    def _count(self, keep_M: np.ndarray | None) -> int:
        if keep_M is None:
            return len(self)
        if keep_M.dtype != np.bool_ or keep_M.shape != (len(self),):
            raise UsageError(
                f"keep has the shape {keep_M.shape} of {keep_M.dtype}; "
                f"expected one bool for each of {len(self)} references."
            )
        return int(keep_M.sum())


def _selector(keep_M: np.ndarray | None) -> Any:
    if keep_M is None:
        return None
    import faiss

    # Its keyword arguments are added at import and unknown to its stubs.
    parameters: Any = faiss.SearchParameters
    return parameters(sel=faiss.IDSelectorBatch(np.flatnonzero(keep_M)))


def retrieve(
    query_ND: np.ndarray, reference_MD: np.ndarray | ExactIndex, k: int, *, keep_M: np.ndarray | None = None
) -> Hits:
    """The k references of highest cosine for each query, best first; equal scores by rising row.

    `query_ND` and `reference_MD` are float vectors of one model, of any length but zero; an `ExactIndex` saves building
    one for each call. `keep_M` (bool) leaves references out, such as those of the query's own slide.

    Raises `UsageError` if k is not between 1 and the number of references left, if the widths differ, or if a vector
    is not finite or zero. Source: Loki Retrieve (METHODS 1.3.4).
    """
    index = reference_MD if isinstance(reference_MD, ExactIndex) else ExactIndex(reference_MD)
    return index.search(query_ND, k, keep_M)
