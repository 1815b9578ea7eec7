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

    def add(self, gene_ids: np.ndarray, counts: np.ndarray, sizes_N: np.ndarray | None = None) -> None:
        """Count in some spots, whose profiles follow each other: `sizes_N` says how many genes each has; without it
        they are all of one spot."""
        sizes_N = np.array([len(gene_ids)]) if sizes_N is None else np.asarray(sizes_N)
        self._spots += len(sizes_N)
        counts = np.asarray(counts, dtype=np.float64)
        row = np.repeat(np.arange(len(sizes_N)), sizes_N)
        total_N = np.bincount(row, weights=counts, minlength=len(sizes_N))
        used = total_N[row] > 0
        gene_ids, counts, row = np.asarray(gene_ids)[used], counts[used], row[used]
        if not len(gene_ids):
            return
        size = int(gene_ids.max()) + 1
        self._grow(size)
        value = np.log1p(counts / total_N[row] * TARGET_SUM)
        for total, weights in ((self._seen, counts > 0), (self._sum, value), (self._squares, value**2)):
            total[:size] += np.bincount(gene_ids, weights=weights, minlength=size)

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
