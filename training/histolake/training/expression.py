"""Expression as models are judged by it: log1p of counts per ten thousand over all genes, and which genes are worth it.

Axes: N spots, G genes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

__all__ = ["GeneChooser", "normalised"]

TARGET_SUM = 1e4
# A gene counts as well expressed when at least this share of the training spots has it.
MIN_SHARE = 0.2


def normalised(
    gene_ids: Iterable[np.ndarray], counts: Iterable[np.ndarray], wanted: Sequence[int] | np.ndarray
) -> np.ndarray:
    """log1p(counts per 10^4 over all genes), float32 (N, G), of the wanted genes in the order given.

    `gene_ids` and `counts` are one sparse profile a spot. A spot without counts is a row of zeros.
    """
    wanted = np.asarray(wanted, dtype=np.int64)
    sorter = np.argsort(wanted)
    rows = []
    for ids, values in zip(gene_ids, counts, strict=True):
        row_G = np.zeros(len(wanted), dtype=np.float32)
        total = float(np.sum(values))
        if total > 0 and len(wanted):
            at = np.searchsorted(wanted, ids, sorter=sorter).clip(max=len(wanted) - 1)
            column = sorter[at]
            hit = wanted[column] == ids
            np.add.at(row_G, column[hit], np.asarray(values)[hit] / total * TARGET_SUM)
        rows.append(np.log1p(row_G))
    return np.stack(rows) if rows else np.zeros((0, len(wanted)), dtype=np.float32)


class GeneChooser:
    """The most variable of the well expressed genes, from a stream of sparse profiles: three sums a gene are kept."""

    def __init__(self) -> None:
        self._spots = 0
        self._seen = np.zeros(0)
        self._sum = np.zeros(0)
        self._squares = np.zeros(0)

    def add(self, gene_ids: np.ndarray, counts: np.ndarray) -> None:
        """Count in one spot."""
        self._spots += 1
        total = float(np.sum(counts))
        if total <= 0:
            return
        self._grow(int(gene_ids.max()) + 1)
        value = np.log1p(np.asarray(counts, dtype=np.float64) / total * TARGET_SUM)
        self._seen[gene_ids] += np.asarray(counts) > 0
        self._sum[gene_ids] += value
        self._squares[gene_ids] += value**2

    def choose(self, count: int) -> np.ndarray:
        """gene_ids of at most `count` genes by falling variance of the normalised value; ties by id."""
        if not self._spots:
            return np.zeros(0, dtype=np.int64)
        variance_G = self._squares / self._spots - (self._sum / self._spots) ** 2
        well_G = (self._seen >= MIN_SHARE * self._spots) & (variance_G > 0)
        candidates = np.flatnonzero(well_G)
        order = np.lexsort((candidates, -variance_G[candidates]))
        return candidates[order][:count]

    def _grow(self, size: int) -> None:
        missing = size - len(self._sum)
        if missing > 0:
            self._seen = np.pad(self._seen, (0, missing))
            self._sum = np.pad(self._sum, (0, missing))
            self._squares = np.pad(self._squares, (0, missing))
