"""Spatial blocks: the tissue of one slide cut into squares, each on a side, with a band between sides left out.

Block (i, j) holds the points with floor(x / block_um) = i and floor(y / block_um) = j. A pair has the side of its block
if the square of `gap_um` around its spot touches blocks of that side alone; else it is in the band, and left out. So
the squares of two pairs of different sides lie in different blocks and never overlap: the pairs are at least `gap_um`
apart along x or along y. With the niche's width for `gap_um` no two patches of different sides show the same tissue.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

__all__ = ["OUT", "block_sides"]

OUT = 3  # the code of a pair that is on no side: past those of the three sides, so that it names none by mistake
ROUNDING_UM = 1e-6  # added to the band, far above the error of the arithmetic


def block_sides(
    x_um: np.ndarray,
    y_um: np.ndarray,
    side_of: Callable[[int, int], int],
    *,
    block_um: float,
    gap_um: float,
) -> np.ndarray:
    """The code of each pair's side, int8 (N,); `OUT` in the band and for a place that is not known (NaN).

    `side_of(i, j)` gives the code of a block. `gap_um` is less than `block_um`.
    """
    if not 0 <= gap_um <= block_um - 2 * ROUNDING_UM:
        raise ValueError(f"a gap of {gap_um} um between blocks of {block_um} um")
    x_N, y_N = (np.asarray(axis, dtype=np.float64) for axis in (x_um, y_um))
    known_N = np.isfinite(x_N) & np.isfinite(y_N)
    codes_N = np.full(len(x_N), OUT, dtype=np.int8)
    if not known_N.any():
        return codes_N
    half_um = gap_um / 2 + ROUNDING_UM
    # The square around a pair touches at most two columns and two rows of blocks.
    columns, rows = ([np.floor((a[known_N] + d) / block_um) for d in (0.0, -half_um, half_um)] for a in (x_N, y_N))
    own_K = _codes(columns[0], rows[0], side_of)
    alone_K = np.ones(len(own_K), dtype=bool)
    for i_K in columns[1:]:
        for j_K in rows[1:]:
            alone_K &= _codes(i_K, j_K, side_of) == own_K
    codes_N[known_N] = np.where(alone_K, own_K, OUT)
    return codes_N


def _codes(i_K: np.ndarray, j_K: np.ndarray, side_of: Callable[[int, int], int]) -> np.ndarray:
    """The codes of the blocks that pairs lie in; each block is asked for once."""
    blocks_U2, of_K = np.unique(np.stack([i_K, j_K], axis=1).astype(np.int64), axis=0, return_inverse=True)
    codes_U = np.array([side_of(int(i), int(j)) for i, j in blocks_U2], dtype=np.int8)
    return codes_U[of_K.ravel()]
