"""The lattice on which an array's spots lie, and how many pixels its pitch takes.

Distances between neighbours are no scale: positions may be adjusted by hand, and an image may be stretched. So a plane
is fitted over all spots at once (pixels = A * array position + shift), and the pitch is the length that A gives to the
step from a spot to its nearest neighbours on the array. Where a source names no array positions, `index_lattice` finds
them: from spot to neighbour, one step at a time.

Not for cells or for bins that are cut freely: what is not a lattice has no pitch, and None comes back.

Axes: N spots, 2 = (column, row) of an array or (x, y) of an image.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["Lattice", "fit_lattice", "index_lattice"]

FEWEST_SPOTS = 12
NEIGHBOUR = 0.2  # steps up to this fraction longer than the shortest lead to nearest neighbours
COMMON = 0.25  # fraction of the spots that must have a neighbour at a step, for the step to count
OFF = 0.3  # fraction of the pitch that positions may lie off the lattice (root mean square)
STEP = 3  # steps of the array's numbering that are looked at, in each direction


@dataclass(frozen=True, kw_only=True)
class Lattice:
    """Where the spots of an array lie in an image."""

    pitch_px: float  # pixels from a spot to its nearest neighbours, mean of all directions
    neighbours: int  # nearest neighbours of a spot inside the array: 6 on a hexagonal array, 4 on a square one
    staggered: bool  # neighbours differ in column and row at once, as on a chessboard
    ratio: float  # pixels of a step in the row by pixels of a step in the column


def fit_lattice(array_N2: np.ndarray, xy_N2: np.ndarray) -> Lattice | None:
    """The lattice of spots whose (column, row) on the array are known; None where the positions are not on one."""
    from numpy.linalg import lstsq, matrix_rank, norm

    known = np.isfinite(array_N2).all(axis=1) & np.isfinite(xy_N2).all(axis=1)
    array_N2, xy_N2 = array_N2[known].astype(np.float64), xy_N2[known].astype(np.float64)
    if len(array_N2) < FEWEST_SPOTS:
        return None
    design_N3 = np.column_stack([array_N2, np.ones(len(array_N2))])
    if matrix_rank(design_N3) < 3:  # all in one row or column
        return None
    plane_32, *_ = lstsq(design_N3, xy_N2, rcond=None)
    steps = _neighbour_steps(array_N2)
    if not len(steps):
        return None
    lengths = norm(steps @ plane_32[:2], axis=1)
    if not lengths.min() > 0:
        return None
    near = lengths <= lengths.min() * (1 + NEIGHBOUR)
    pitch_px = float(lengths[near].mean())
    off_px = float(np.sqrt(((design_N3 @ plane_32 - xy_N2) ** 2).sum(axis=1).mean()))
    if off_px > OFF * pitch_px:
        return None
    column_px, row_px = norm(plane_32[:2], axis=1)
    return Lattice(
        pitch_px=pitch_px,
        neighbours=2 * int(near.sum()),
        staggered=bool((steps[near] != 0).all(axis=1).any()),
        ratio=float(row_px / column_px),
    )


def _neighbour_steps(array_N2: np.ndarray) -> np.ndarray:
    """Steps (column, row) of the numbering that lead from many spots to another spot. Half of them: not the way
    back."""
    whole_N2 = np.rint(array_N2).astype(np.int64)
    whole_N2 -= whole_N2.min(axis=0) - STEP
    taken = np.zeros(whole_N2.max(axis=0) + STEP + 1, dtype=bool)
    taken[whole_N2[:, 0], whole_N2[:, 1]] = True
    steps = [(c, r) for c in range(STEP + 1) for r in range(-STEP, STEP + 1) if (c, r) > (0, 0)]
    common = [(c, r) for c, r in steps if taken[whole_N2[:, 0] + c, whole_N2[:, 1] + r].mean() >= COMMON]
    return np.array(common, dtype=np.float64).reshape(-1, 2)


def index_lattice(xy_N2: np.ndarray) -> np.ndarray | None:
    """Column and row of each spot on a lattice that its positions alone show, NaN for spots that lie off it.

    The two shortest steps between neighbours that differ by more than 30 degrees span the lattice; from any spot its
    neighbours follow, and theirs. The numbering starts anywhere and may be skewed (two axes at 60 degrees on a
    hexagonal array), which a fit does not mind. None where less than 80% of the spots can be reached.
    """
    from scipy.spatial import cKDTree

    placed = np.isfinite(xy_N2).all(axis=1)
    if not placed.all():
        found = index_lattice(xy_N2[placed])
        if found is None:
            return None
        array_N2 = np.full(xy_N2.shape, np.nan)
        array_N2[placed] = found
        return array_N2
    if len(xy_N2) < FEWEST_SPOTS:
        return None
    around = min(7, len(xy_N2))
    distance_NK, index_NK = cKDTree(xy_N2).query(xy_N2, k=around)
    steps_N2 = (xy_N2[index_NK[:, 1:]] - xy_N2[:, None]).reshape(-1, 2)
    basis_22 = _basis(steps_N2, float(np.median(distance_NK[:, 1])))
    if basis_22 is None:
        return None
    array_N2 = _walk(xy_N2, index_NK[:, 1:], np.linalg.inv(basis_22))
    reached = np.isfinite(array_N2).all(axis=1)
    return array_N2 if reached.mean() >= 0.8 else None


def _basis(steps_M2: np.ndarray, nearest_px: float) -> np.ndarray | None:
    """Two steps that span the lattice: the commonest among the short ones, and the commonest at an angle to it."""
    if not nearest_px > 0:
        return None
    length_M = np.linalg.norm(steps_M2, axis=1)
    short = steps_M2[(length_M > 0.7 * nearest_px) & (length_M < 1.25 * nearest_px)]
    if len(short) < FEWEST_SPOTS:
        return None
    first = _commonest(short, nearest_px)
    sine = np.abs(short[:, 0] * first[1] - short[:, 1] * first[0])
    across = short[sine > 0.5 * np.linalg.norm(short, axis=1) * np.linalg.norm(first)]
    if len(across) < FEWEST_SPOTS // 2:
        return None
    return np.stack([first, _commonest(across, nearest_px)])


def _commonest(steps_M2: np.ndarray, nearest_px: float) -> np.ndarray:
    """The mean of the steps around the place where most of them end."""
    from scipy.spatial import cKDTree

    sample = steps_M2[:: max(1, len(steps_M2) // 500)]
    within = cKDTree(steps_M2).query_ball_point(sample, r=0.15 * nearest_px)
    return steps_M2[max(within, key=len)].mean(axis=0)


def _walk(xy_N2: np.ndarray, neighbours_NK: np.ndarray, inverse_22: np.ndarray) -> np.ndarray:
    """Array positions by going from neighbour to neighbour, from the spot whose neighbours fit best."""
    steps_NK2 = (xy_N2[neighbours_NK] - xy_N2[:, None]) @ inverse_22
    whole_NK2 = np.rint(steps_NK2)
    fits_NK = (np.abs(steps_NK2 - whole_NK2).max(axis=2) < 0.25) & (np.abs(whole_NK2).max(axis=2) > 0)
    array_N2 = np.full(xy_N2.shape, np.nan)
    start = int(fits_NK.sum(axis=1).argmax())
    array_N2[start] = 0
    waiting = [start]
    while waiting:
        i = waiting.pop()
        for k in np.flatnonzero(fits_NK[i]):
            j = neighbours_NK[i, k]
            if np.isnan(array_N2[j, 0]):
                array_N2[j] = array_N2[i] + whole_NK2[i, k]
                waiting.append(j)
    return array_N2
