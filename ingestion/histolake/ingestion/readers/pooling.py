"""Cells or small bins pooled into spots on a lattice: the pseudo-spots of imaging platforms and of Visium HD.

A spot is a circle on a lattice that stands still: its origin is that of the micrometres given, so neither the extent
of the tissue nor a cell more or less moves it. Every cell belongs to the nearest centre; it is counted there when it
lies within the circle, or always with `keep_all`, which makes hexagonal tiles (or square bins) out of the circles.
So each cell is in exactly one spot or counted as outside, and counts are conserved.

Numbering is Visium's: on the hexagonal lattice neighbours of a row are two columns apart and odd rows have odd columns;
rows lie sqrt(3)/2 pitches apart. On the square one, neighbours are one row or one column apart.

Axes: N cells or bins, G genes, S spots that hold at least one cell.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import Any, Literal

import numpy as np

__all__ = ["Layout", "Pooled", "nearest_centre", "pool", "steps_um", "sum_by_key"]

Layout = Literal["hexagonal", "square"]
BLOCK = 1 << 20  # cells looked at in one go, to bound the memory of the distances


@dataclass(frozen=True, kw_only=True, eq=False)
class Pooled:
    """Spots in raster order: by array row, then array column."""

    counts_SG: Any  # scipy.sparse.csr_array float32: the sum over the cells of a spot
    xy_um_S2: np.ndarray  # float64, centres
    array_row: np.ndarray  # (S,) float32, from 0 or 1
    array_col: np.ndarray  # (S,) float32, from 0 or 1
    cells: np.ndarray  # (S,) int64, cells in each spot
    spot_N: np.ndarray  # int64, the spot of each cell; -1 outside
    outside: int  # cells in no spot


def pool(
    counts_NG: Any,
    xy_um_N2: np.ndarray,
    *,
    pitch_um: float,
    diameter_um: float,
    layout: Layout = "hexagonal",
    keep_all: bool = False,
) -> Pooled:
    """The counts of cells at `xy_um_N2` (micrometres, finite) summed by spot.

    `pitch_um` lies between neighbouring centres, `diameter_um` is that of a spot; a cell on its rim is inside. Circles
    may not overlap, for a cell has one spot. One sparse product, no loop over cells or spots.
    """
    from scipy.sparse import csr_array

    if not 0 < diameter_um <= pitch_um:
        raise ValueError(f"Spots of {diameter_um:g} um do not fit {pitch_um:g} um apart: a cell would be in two.")
    if not np.isfinite(xy_um_N2).all():
        raise ValueError("A cell to pool has no finite position.")
    n_cells = len(xy_um_N2)
    row_N, col_N, inside_N = (np.empty(n_cells, kind) for kind in (np.int64, np.int64, bool))
    for start in range(0, n_cells, BLOCK):
        run = slice(start, start + BLOCK)
        row_N[run], col_N[run], away_um = nearest_centre(xy_um_N2[run], pitch_um, layout)
        inside_N[run] = away_um <= diameter_um / 2 * (1 + 1e-9)
    if keep_all:
        inside_N[:] = True
    kept = np.flatnonzero(inside_N)
    width = int(np.ptp(col_N[kept])) + 1 if len(kept) else 1
    first_col = int(col_N[kept].min()) if len(kept) else 0
    key_N = row_N[kept] * width + (col_N[kept] - first_col)
    key_S, spot, counts_SG = sum_by_key(csr_array(counts_NG, dtype=np.float32), kept, key_N)
    row_S, col_S = np.floor_divide(key_S, width), np.mod(key_S, width) + first_col
    spot_N = np.full(n_cells, -1, np.int64)
    spot_N[kept] = spot
    step_x, step_y = steps_um(pitch_um, layout)
    return Pooled(
        counts_SG=counts_SG,
        xy_um_S2=np.stack([col_S * step_x, row_S * step_y], axis=1).astype(np.float64),
        array_row=_numbered(row_S, layout),
        array_col=_numbered(col_S, layout),
        cells=np.bincount(spot, minlength=len(key_S)),
        spot_N=spot_N,
        outside=n_cells - len(kept),
    )


def sum_by_key(counts_NG: Any, row: np.ndarray, key: np.ndarray) -> tuple[np.ndarray, np.ndarray, Any]:
    """Rows of a float32 matrix added up by their spots' keys: the keys in order (S,), the spot of each of these rows,
    and the sums (S, G) as `csr_array`."""
    from scipy.sparse import csr_array

    key_S, spot = np.unique(key, return_inverse=True)
    members = csr_array((np.ones(len(row), np.float32), (spot, row)), shape=(len(key_S), counts_NG.shape[0]))
    return key_S, spot, csr_array(members @ counts_NG)


def steps_um(pitch_um: float, layout: Layout) -> tuple[float, float]:
    """Micrometres between two columns, and between two rows, of the numbering."""
    return (pitch_um / 2, pitch_um * sqrt(3) / 2) if layout == "hexagonal" else (pitch_um, pitch_um)


def nearest_centre(xy_um_N2: np.ndarray, pitch_um: float, layout: Layout) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row and column of the nearest centre, and how far it is, in micrometres.

    The hexagonal lattice is two rectangular ones, its even and its odd rows; the nearer of the two candidates wins,
    the even one where both are as near.
    """
    step = np.array(steps_um(pitch_um, layout))
    at = xy_um_N2 / step
    if layout == "square":
        centre = np.floor(at + 0.5)
        return centre[:, 1].astype(np.int64), centre[:, 0].astype(np.int64), np.hypot(*((at - centre) * step).T)
    even, odd = 2 * np.floor(at / 2 + 0.5), 2 * np.floor(at / 2) + 1
    away_even, away_odd = (np.hypot(*((at - centre) * step).T) for centre in (even, odd))
    nearer = away_odd < away_even
    centre = np.where(nearer[:, None], odd, even)
    return centre[:, 1].astype(np.int64), centre[:, 0].astype(np.int64), np.where(nearer, away_odd, away_even)


def _numbered(index_S: np.ndarray, layout: Layout) -> np.ndarray:
    """The numbers moved to begin at 0; by an even step on the hexagonal lattice, so that odd rows keep odd columns."""
    if not len(index_S):
        return index_S.astype(np.float32)
    first = int(index_S.min())
    return (index_S - (first - first % 2 if layout == "hexagonal" else first)).astype(np.float32)
