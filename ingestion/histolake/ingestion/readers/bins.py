"""From the small squares of a Visium HD slide to spots: which spot each bin belongs to, and the sums of their counts.

Two targets. `Squares` of any multiple of the bins' width tile the plane: every bin under tissue belongs to one, and the
counts are conserved to the last one. `PseudoVisium` lays discs of 55 um on the lattice of a Visium slide (hexagonal,
100 um between neighbours), so that its pairs compare with a Visium slide's: a bin whose centre lies in a disc belongs
to that disc and no other. About 73% of the plane lies between the discs, as it does on Visium; the share of the counts
there is measured.

Counts are pooled by sparse multiplication, a run of barcodes at a time; memory is bounded by one run and the result.
`pooling.pool` lays the same discs, but wants every count and place at once and knows no grid that says which part of a
disc is tissue, so only its lattice and its sums are used here.

Axes: N bins of a run, S spots, R rows and C columns of the bins' grid, G genes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from histolake.ingestion.readers.matrices import H5Matrix
from histolake.ingestion.readers.pooling import nearest_centre, steps_um, sum_by_key
from histolake.ingestion.readers.refusals import holds_no
from histolake.ingestion.readers.visium_positions import fit_array, parquet_file
from histolake.platform.errors import SourceError, UsageError

__all__ = [
    "Grid",
    "PooledBins",
    "PseudoVisium",
    "Squares",
    "Target",
    "VisiumHDSettings",
    "pool_bins",
    "read_grid",
    "target_of",
]

PSEUDO_VISIUM = "pseudo-visium"
FINEST_UM = 2
RUN_VALUES = 4_000_000  # stored values of a run of barcodes, about 50 MB with what is computed from them
RUN_BINS = 250_000  # positions looked at together
FITTED_BINS = 200_000  # positions that the map from micrometres to pixels is fitted to
MAX_OFF_UM = 2.0  # mean distance of the bins from that map
NUMBERS = ("in_tissue", "array_row", "array_col", "pxl_row_in_fullres", "pxl_col_in_fullres")


@dataclass(frozen=True, kw_only=True)
class VisiumHDSettings:
    """What the bins of a Visium HD slide are read as. A section's `section.json` may say `bins` for itself."""

    bins: str = PSEUDO_VISIUM  # "pseudo-visium" (55 um discs, 100 um apart) or the width of square bins in um ("8")
    min_covered: float = 0.5  # fraction of a pseudo-spot's area that must lie under tissue

    def __post_init__(self) -> None:
        try:
            target_of(self.bins)
        except UsageError as error:
            raise ValueError(str(error)) from error
        if not 0 < self.min_covered <= 1:
            raise ValueError(f"min_covered is {self.min_covered:g}; give a fraction above 0 and at most 1")


class Target(Protocol):
    """Where spots are laid. Micrometres run from the corner of the grid's first bin: x along columns, y along rows."""

    @property
    def diameter_um(self) -> float:
        """Micrometres across a spot."""

    @property
    def pitch_um(self) -> float:
        """Micrometres between neighbouring spots' centres."""

    @property
    def tiles(self) -> bool:
        """Whether every bin belongs to a spot."""

    def spots_of(self, x_um: np.ndarray, y_um: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(N,) row and (N,) column of the spot that a point belongs to; -1 and -1 where it lies in none."""

    def centres_um(self, row: np.ndarray, col: np.ndarray) -> np.ndarray:
        """(S, 2) centres, x and y."""

    def bins_inside(self, bin_um: float) -> float:
        """How many bins of this width make a whole spot."""

    def barcode(self, row: int, col: int) -> str:
        """A spot's name."""


@dataclass(frozen=True)
class Squares:
    """Squares side by side, named as Space Ranger names bins of that width."""

    width_um: int
    tiles: bool = True

    @property
    def diameter_um(self) -> float:
        """The side of a square."""
        return float(self.width_um)

    @property
    def pitch_um(self) -> float:
        """The side of a square."""
        return float(self.width_um)

    def spots_of(self, x_um: np.ndarray, y_um: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The square that a point lies in."""
        return (y_um // self.width_um).astype(np.int32), (x_um // self.width_um).astype(np.int32)

    def centres_um(self, row: np.ndarray, col: np.ndarray) -> np.ndarray:
        """Middles of squares."""
        return np.stack([(col + 0.5) * self.width_um, (row + 0.5) * self.width_um], axis=1)

    def bins_inside(self, bin_um: float) -> float:
        """Whole bins in a square."""
        return (self.width_um / bin_um) ** 2

    def barcode(self, row: int, col: int) -> str:
        """As s_008um_00269_00526-1."""
        return f"s_{self.width_um:03d}um_{row:05d}_{col:05d}-1"


@dataclass(frozen=True)
class PseudoVisium:
    """Discs on the lattice of a Visium slide, numbered as there: in even rows even columns, in odd rows odd ones."""

    diameter_um: float = 55.0
    pitch_um: float = 100.0
    tiles: bool = False

    def spots_of(self, x_um: np.ndarray, y_um: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The disc that a point lies in; the first disc's middle is half a pitch from the corner. Discs do not touch,
        so a point lies in one at most."""
        from_first = np.stack([x_um, y_um], axis=1) - self.pitch_um / 2
        row, col, away_um = nearest_centre(from_first, self.pitch_um, "hexagonal")
        inside = (away_um <= self.diameter_um / 2) & (row >= 0) & (col >= 0)
        return np.where(inside, row, -1), np.where(inside, col, -1)

    def centres_um(self, row: np.ndarray, col: np.ndarray) -> np.ndarray:
        """Middles of discs."""
        step = np.array(steps_um(self.pitch_um, "hexagonal"))
        return self.pitch_um / 2 + np.stack([col, row], axis=1) * step

    def bins_inside(self, bin_um: float) -> float:
        """A disc's area over a bin's."""
        return float(np.pi * (self.diameter_um / 2 / bin_um) ** 2)

    def barcode(self, row: int, col: int) -> str:
        """As v_055um_00026_00053-1."""
        return f"v_{self.diameter_um:03.0f}um_{row:05d}_{col:05d}-1"


def target_of(bins: str) -> Target:
    """What a setting's word means. Raises `UsageError` for any other word."""
    if bins == PSEUDO_VISIUM:
        return PseudoVisium()
    width = int(bins) if bins.isdecimal() else 0
    if width < FINEST_UM or width % FINEST_UM:
        raise UsageError(
            f"visium_hd.bins is {bins!r}; say {PSEUDO_VISIUM!r} or the width of square bins in um, a multiple of "
            f"{FINEST_UM}."
        )
    return Squares(width)


@dataclass(frozen=True, kw_only=True, eq=False)
class Grid:
    """The bins of one size: which lie under tissue, and where on the image the array's micrometres are."""

    bin_um: float
    tissue_RC: np.ndarray  # bool
    um_per_px: float
    coefficients: np.ndarray  # (6, 2) of the polynomial of second degree that takes micrometres to pixels
    file: str

    def xy_px(self, xy_um: np.ndarray) -> np.ndarray:
        """Pixels of the full-resolution image. The map is of second degree, for the instrument's camera is tilted."""
        return _powers(xy_um) @ self.coefficients


@dataclass(frozen=True, kw_only=True, eq=False)
class PooledBins:
    """Spots that hold at least one bin with counts, in raster order. in_spots + outside = all counts of the matrix."""

    row: np.ndarray  # (S,) int32
    col: np.ndarray  # (S,) int32
    counts_SG: Any  # scipy.sparse.csr_array float32
    covered: np.ndarray  # (S,) float64, fraction of the spot's bins that lie under tissue
    in_spots: float  # sum of counts
    outside: float  # sum of the counts of bins that lie in no spot or not under tissue
    matched: float  # fraction of the matrix's bins that the positions have under tissue


def read_grid(uri: str, bin_um: float) -> Grid:
    """The grid of `tissue_positions.parquet`, read in runs without its barcodes: row and column say the same."""
    file = parquet_file(uri)
    stride = max(1, file.metadata.num_rows // FITTED_BINS)
    rows, cols, sample = [], [], []
    for batch in file.iter_batches(batch_size=RUN_BINS, columns=list(NUMBERS)):
        in_tissue, row, col, y_px, x_px = (batch[name].to_numpy(zero_copy_only=False) for name in NUMBERS)
        under = np.flatnonzero(in_tissue == 1)
        rows.append(row[under].astype(np.int32))
        cols.append(col[under].astype(np.int32))
        some = under[::stride]
        sample.append(np.stack([col[some], row[some], x_px[some], y_px[some]], axis=1).astype(np.float64))
    if not sum(map(len, rows)):
        raise holds_no(uri, "bin under tissue")
    row, col = np.concatenate(rows), np.concatenate(cols)
    if min(row.min(), col.min()) < 0:
        raise SourceError(
            f"{uri} has a negative row or column.", rule="positions_valid", figure=-1.0, limit=0.0, file=uri
        )
    tissue_RC = np.zeros((int(row.max()) + 1, int(col.max()) + 1), dtype=bool)
    tissue_RC[row, col] = True
    fitted = np.concatenate(sample)
    xy_um, xy_px = (fitted[:, :2] + 0.5) * bin_um, fitted[:, 2:]
    um_per_px = fit_array(xy_um, xy_px, uri, limit_um=10 * bin_um)
    coefficients, *_ = np.linalg.lstsq(_powers(xy_um), xy_px, rcond=None)
    off_um = float(np.sqrt(np.mean(np.sum((_powers(xy_um) @ coefficients - xy_px) ** 2, axis=1)))) * um_per_px
    if not off_um <= MAX_OFF_UM:
        raise SourceError(
            f"{uri}: the bins' pixels lie {off_um:.1f} um from a smooth map of the grid (at most {MAX_OFF_UM:g} um). "
            "Give the positions as Space Ranger wrote them.",
            rule="positions_valid",
            figure=off_um,
            limit=MAX_OFF_UM,
            file=uri,
        )
    return Grid(bin_um=bin_um, tissue_RC=tissue_RC, um_per_px=um_per_px, coefficients=coefficients, file=uri)


def pool_bins(stored: H5Matrix, grid: Grid, target: Target) -> PooledBins:
    """Sum the counts of the bins of each spot."""
    from scipy.sparse import vstack

    parts, keys = [], []
    total = inside = matched = 0.0
    for start, stop in stored.blocks(RUN_VALUES):
        key_N, under_N = _spot_keys(stored.barcodes(start, stop), grid, target)
        matched += float(under_N.sum())
        counts_NG = stored.rows(start, stop)
        total += float(counts_NG.data.sum(dtype=np.float64))
        in_spot = np.flatnonzero(key_N >= 0)
        spots, _, counts_SG = sum_by_key(counts_NG, in_spot, key_N[in_spot])
        parts.append(counts_SG)
        keys.append(spots)
    spots, counts_SG = np.concatenate(keys), vstack(parts, format="csr")
    del parts
    if not (np.diff(spots) > 0).all():  # a spot whose bins came in two runs is in two parts
        spots, _, counts_SG = sum_by_key(counts_SG, np.arange(len(spots)), spots)
    inside = float(counts_SG.data.sum(dtype=np.float64))
    row, col = (part.astype(np.int32) for part in np.divmod(spots, _KEY))
    return PooledBins(
        row=row,
        col=col,
        counts_SG=counts_SG,
        covered=_bins_under_tissue(grid, target, spots) / target.bins_inside(grid.bin_um),
        in_spots=inside,
        outside=total - inside,
        matched=matched / stored.n_barcodes,
    )


_KEY = 1 << 24  # a spot's key is row * _KEY + column, in raster order


def _spot_keys(barcodes_N: np.ndarray, grid: Grid, target: Target) -> tuple[np.ndarray, np.ndarray]:
    """(N,) key of each bin's spot, -1 where it has none; (N,) whether the bin lies under tissue."""
    row, col = _places(barcodes_N, grid)
    n_rows, n_cols = grid.tissue_RC.shape
    under = (row < n_rows) & (col < n_cols)
    under[under] = grid.tissue_RC[row[under], col[under]]
    key_N = _keys_at(row, col, grid.bin_um, target)
    return np.where(under, key_N, -1), under


def _keys_at(row: np.ndarray, col: np.ndarray, bin_um: float, target: Target) -> np.ndarray:
    spot_row, spot_col = target.spots_of((col + 0.5) * bin_um, (row + 0.5) * bin_um)
    return np.where(spot_row < 0, -1, spot_row.astype(np.int64) * _KEY + spot_col)


def _places(barcodes_N: np.ndarray, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Row and column that the bins' names say: s_002um_00269_00526-1."""
    width = barcodes_N.dtype.itemsize
    letters = np.ascontiguousarray(barcodes_N).view(np.uint8).reshape(len(barcodes_N), width)
    name = f"s_{grid.bin_um:03.0f}um_"
    digits = [*range(len(name), len(name) + 5), *range(len(name) + 6, len(name) + 11)]
    good = width >= len(name) + 11
    good = good and bool((letters[:, : len(name)] == np.frombuffer(name.encode(), dtype=np.uint8)).all())
    good = good and bool(((letters[:, digits] >= ord("0")) & (letters[:, digits] <= ord("9"))).all())
    if not good:
        raise SourceError(
            f"The matrix has barcodes like {barcodes_N[0].decode(errors='replace')}, which are no bins of "
            f"{grid.bin_um:g} um ({name}00000_00000-1).",
            rule="barcodes_match",
            figure=0.0,
            limit=1.0,
            file=grid.file,
        )
    tens = 10 ** np.arange(4, -1, -1)
    numbers = letters[:, digits].astype(np.int32) - ord("0")
    return numbers[:, :5] @ tens, numbers[:, 5:] @ tens


def _bins_under_tissue(grid: Grid, target: Target, spots: np.ndarray) -> np.ndarray:
    """(S,) how many bins of each spot lie under tissue."""
    held = np.zeros(len(spots), dtype=np.int64)
    for keys in _tissue_keys(grid, target):
        place = np.searchsorted(spots, keys)
        known = place < len(spots)
        known[known] = spots[place[known]] == keys[known]
        held += np.bincount(place[known], minlength=len(spots))
    return held.astype(np.float64)


def _tissue_keys(grid: Grid, target: Target) -> Iterator[np.ndarray]:
    n_rows, n_cols = grid.tissue_RC.shape
    step = max(1, RUN_BINS // n_cols)
    for first in range(0, n_rows, step):
        row, col = np.nonzero(grid.tissue_RC[first : first + step])
        yield _keys_at(row + first, col, grid.bin_um, target)


def _powers(xy_um: np.ndarray) -> np.ndarray:
    """(N, 6) the terms of second degree of millimetres about the middle of a capture area of 6.5 mm."""
    x, y = (xy_um / 1000 - 3.25).T
    return np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=1)
