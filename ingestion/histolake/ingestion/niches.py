"""Niches: each spot with its nearest other spots (ST-Align, equations 1 and 2), or with all within a radius.

A niche is a run of a ragged list: `indices[indptr[i]:indptr[i + 1]]` are the other spots of spot i, nearest first.
By number (`niche_k`) every spot has as many others whatever the array's pitch; by radius a niche is the same piece of
tissue on every platform, and a spot that stands alone has none.

Axes: N spots, K neighbours, G genes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from histolake.ingestion.tiling import PatchSettings
from histolake.platform.errors import SourceError

__all__ = ["Niches", "find_niches", "nearest_spots", "niche_sums", "spots_within"]

EQUAL_PX = 1e-6  # distances that differ by less than this (in pixels) are equal, and the earlier spot is the nearer
MOST_SPOTS = 1000  # in one niche
MOST_PAIRS = 20_000_000  # in all niches of a slide together, about 1 GB while they are found


@dataclass(frozen=True, eq=False)
class Niches:
    """The niche of every spot, ragged."""

    indptr: np.ndarray  # (N + 1,) int64
    indices: np.ndarray  # int64, other spots, nearest first within a niche

    def __len__(self) -> int:
        return len(self.indptr) - 1

    def of(self, i: int) -> np.ndarray:
        """The other spots of spot `i`, nearest first."""
        return self.indices[self.indptr[i] : self.indptr[i + 1]]

    @classmethod
    def of_width(cls, niche_NK: np.ndarray) -> Niches:
        """Niches that all have K spots."""
        n, k = niche_NK.shape
        return cls(np.arange(n + 1, dtype=np.int64) * k, niche_NK.ravel().astype(np.int64))


def find_niches(xy_px_N2: np.ndarray, um_per_px: float, settings: PatchSettings) -> Niches:
    """The niches that the settings ask for."""
    if settings.niche_by == "radius":
        assert settings.niche_radius_um is not None, "the settings were checked"
        return spots_within(xy_px_N2, settings.niche_radius_um / um_per_px)
    return Niches.of_width(nearest_spots(xy_px_N2, settings.niche_k))


def nearest_spots(xy_px_N2: np.ndarray, k: int) -> np.ndarray:
    """The `k` nearest other spots of each spot, nearest first, as (N, K) int64 indices.

    Equal distances go by the spots' order, so a regular grid has one answer. Where there are no more than `k` spots,
    K is all of the others.
    """
    from scipy.spatial import cKDTree

    n = len(xy_px_N2)
    k = min(k, max(n - 1, 0))
    if k == 0:
        return np.zeros((n, 0), dtype=np.int64)
    tree = cKDTree(xy_px_N2)
    reach = min(n, k + 1 + 8)
    while True:
        distance_NR, index_NR = tree.query(xy_px_N2, k=reach)
        # Complete when the farthest candidate is farther than the last neighbour: no tie was cut through.
        if reach == n or bool(np.all(distance_NR[:, -1] > distance_NR[:, k] + EQUAL_PX)):
            break
        reach = min(n, 2 * reach)
    steps_NR = np.floor(distance_NR / EQUAL_PX + 0.5)
    steps_NR[index_NR == np.arange(n)[:, None]] = np.inf  # the spot is not its own neighbour
    order_NR = np.lexsort((index_NR, steps_NR), axis=-1)
    return np.take_along_axis(index_NR, order_NR, axis=-1)[:, :k].astype(np.int64)


def spots_within(xy_px_N2: np.ndarray, radius_px: float) -> Niches:
    """All other spots whose centres are no farther than `radius_px`, nearest first; equal distances go by the spots'
    order.

    Raises `SourceError` by rule `niche_size` where a niche would hold more than `MOST_SPOTS`, or the slide more than
    `MOST_PAIRS`.
    """
    from scipy.spatial import cKDTree

    n = len(xy_px_N2)
    if n == 0:
        return Niches(np.zeros(1, dtype=np.int64), np.zeros(0, dtype=np.int64))
    tree = cKDTree(xy_px_N2)
    reach = radius_px + EQUAL_PX
    others_N = tree.query_ball_point(xy_px_N2, reach, return_length=True).astype(np.int64) - 1
    largest = int(others_N.max())
    if largest > MOST_SPOTS or others_N.sum() > MOST_PAIRS:
        raise SourceError(
            f"Niches of this radius hold up to {largest} other spots, {others_N.sum()} together; at most {MOST_SPOTS} "
            f"and {MOST_PAIRS} fit. Lower patches.niche_radius_um, or "
            'take a number of spots (patches.niche_by = "nearest").',
            rule="niche_size",
            figure=float(largest),
            limit=float(MOST_SPOTS),
        )
    pairs = tree.query_pairs(reach, output_type="ndarray")
    spot = np.concatenate([pairs[:, 0], pairs[:, 1]])
    other = np.concatenate([pairs[:, 1], pairs[:, 0]])
    distance = np.linalg.norm(np.asarray(xy_px_N2)[spot] - np.asarray(xy_px_N2)[other], axis=1)
    order = np.lexsort((other, np.floor(distance / EQUAL_PX + 0.5), spot))
    indptr = np.concatenate([[0], np.cumsum(np.bincount(spot, minlength=n))]).astype(np.int64)
    return Niches(indptr, other[order].astype(np.int64))


def niche_sums(counts_NG: Any, niches: Niches, *, include_self: bool, run: slice = slice(None)) -> Iterator[np.ndarray]:
    """Sum of the counts over each niche, or over those of a run of spots, float32 (G,); divided by the niche's size it
    is its mean profile. Each array is good until the next is asked for.

    The sum keeps whole counts whole, so that ties stay ties.
    """
    values = counts_NG.data.astype(np.float32, copy=False)
    edges = counts_NG.indptr
    sums_G = np.zeros(counts_NG.shape[1], dtype=np.float32)
    for i in range(*run.indices(len(niches))):
        sums_G.fill(0)
        for k in [i, *niches.of(i).tolist()] if include_self else niches.of(i).tolist():
            here = slice(edges[k], edges[k + 1])
            np.add.at(sums_G, counts_NG.indices[here], values[here])
        yield sums_G
