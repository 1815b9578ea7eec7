"""Cosine scores and exact ranking, in NumPy alone: the kernel below retrieve, predict and annotate.

A library's float32 product of one query differs in the last bits from that of the same query within a batch, and the
order among equals is left to chance. Here the scores that decide are summed in float64 and ties go to the earlier
reference, so that an answer depends on the query and the references and on nothing else.
"""

from __future__ import annotations

import numpy as np

from histolake.platform.errors import UsageError

__all__ = ["best_rows", "check_vectors", "rescore", "unit_rows"]

# Rows of float64 that a step may hold at once; 2^23 numbers are 64 MiB.
BLOCK_NUMBERS = 1 << 23


def check_vectors(name: str, vectors_ND: np.ndarray, width: int | None = None) -> np.ndarray:
    """The vectors as float32; raises `UsageError` unless they are a finite matrix with rows, `width` wide if given."""
    array = np.asarray(vectors_ND, dtype=np.float32)
    if array.ndim != 2 or not array.size:
        raise UsageError(
            f"{name} has the shape {array.shape}; expected a matrix with one vector a row, and at least one."
        )
    if width is not None and array.shape[1] != width:
        raise UsageError(
            f"{name} has vectors of {array.shape[1]} numbers, the references of {width}; use one model for both."
        )
    if not np.isfinite(array).all():
        rows = np.flatnonzero(~np.isfinite(array).all(axis=1))
        raise UsageError(
            f"{name} holds a NaN or an infinity in {len(rows)} rows, the first is row {rows[0]}; drop them."
        )
    return array


def unit_rows(name: str, vectors_ND: np.ndarray, width: int | None = None) -> np.ndarray:
    """The rows scaled to length 1, float32; raises `UsageError` for a row of zeros, which has no direction."""
    array = check_vectors(name, vectors_ND, width)
    length_N1 = np.linalg.norm(array.astype(np.float64), axis=1, keepdims=True)
    if not length_N1.all():
        raise UsageError(
            f"{name} has a vector of zeros in row {int(np.argmin(length_N1))}; it has no direction to compare."
        )
    return (array / length_N1).astype(np.float32)


def rescore(query_ND: np.ndarray, reference_MD: np.ndarray, rows_NK: np.ndarray) -> np.ndarray:
    """Cosine of each query with its own list of references, summed in float64; (N, K). Both sides hold unit rows."""
    scores_NK = np.empty(rows_NK.shape, dtype=np.float64)
    step = max(1, BLOCK_NUMBERS // max(1, rows_NK.shape[1] * reference_MD.shape[1]))
    for start in range(0, len(query_ND), step):
        part = slice(start, start + step)
        candidates_NKD = reference_MD[rows_NK[part]].astype(np.float64)
        # einsum sums each dot product by itself, so a query's score is the same in any batch.
        scores_NK[part] = np.einsum("nd,nkd->nk", query_ND[part].astype(np.float64), candidates_NKD)
    return scores_NK


def best_rows(scores_NK: np.ndarray, rows_NK: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k best of each line, by falling score and then by rising row: (rows, scores), both (N, k)."""
    order_NK = np.lexsort((rows_NK, -scores_NK), axis=1)[:, :k]
    return np.take_along_axis(rows_NK, order_NK, axis=1), np.take_along_axis(scores_NK, order_NK, axis=1)
