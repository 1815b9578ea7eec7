"""Niches: each spot with its nearest other spots (ST-Align, equations 1 and 2).

Axes: N spots, K neighbours, G genes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["nearest_spots", "niche_sums"]

EQUAL_PX = 1e-6  # distances that differ by less than this (in pixels) are equal, and the earlier spot is the nearer


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


def niche_sums(counts_NG: Any, niche_NK: np.ndarray, *, include_self: bool) -> Any:
    """Sum of the counts over each niche, sparse (N, G); divided by the niche's size it is its mean profile.

    The sum keeps whole counts whole, so that ties stay ties.
    """
    from scipy.sparse import csr_array

    n = len(niche_NK)
    members = np.concatenate([niche_NK, np.arange(n)[:, None]], axis=1) if include_self else niche_NK
    width = members.shape[1]
    ones = np.ones(n * width, dtype=np.float32)
    choose_NN = csr_array((ones, members.ravel(), np.arange(n + 1) * width), shape=(n, n))
    return choose_NN @ counts_NG
