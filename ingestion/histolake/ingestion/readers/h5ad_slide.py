"""From an open `.h5ad` file to a `Slide`: spots, counts, genes, and what the file tells of the scale.

Two readers stand on it: `anndata_reader.py`, which knows nothing but the file, and `hest.py`, whose layout tells more.

**Positions** are pixels of the full-resolution image, as scanpy and squidpy keep them. Where the image that is used is
a reduced one, positions and scale are reduced with it, and the slide is flagged `image_reduced`.

**Counts** are the first of `layers["counts"]`, `raw` and `X` that holds whole numbers. Where none does, `X` is taken as
it is: a normalisation is named (`expression_unit`), never undone.

Axes: N spots, G genes, 2 = (x, y) or (column, row).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from histolake.ingestion.expression_unit import COUNTS, NORMALISED, unit_name
from histolake.ingestion.genes import looks_like_ensembl
from histolake.ingestion.readers.arrays import VISIUM, array_name, recognise, technology_name
from histolake.ingestion.readers.h5ad import H5ad, Library
from histolake.ingestion.readers.lattice import Lattice, fit_lattice, index_lattice
from histolake.ingestion.readers.refusals import check_genes_named, check_unique, holds_no
from histolake.ingestion.slide import ScaleEvidence, Slide, SlideMetadata, Spot
from histolake.platform.errors import SourceError

__all__ = ["CountMatrix", "Observations", "Picture", "Spots", "as_slide", "read_spots", "the_library"]

POSITIONS = ("spatial", "X_spatial", "spatial_px")  # keys of obsm
# Columns of obs, in pairs of x and y, that can only be pixels of the full image.
POSITION_COLUMNS = (
    ("pxl_col_in_fullres", "pxl_row_in_fullres"),
    ("pixel_x", "pixel_y"),
    ("x_pixel", "y_pixel"),
    ("x_px", "y_px"),
    ("imagecol", "imagerow"),
)
ARRAY_COLUMNS = (("array_col", "array_row"), ("col", "row"))
SELECTED = ("in_tissue", "selected", "tissue")
ENSEMBL_COLUMNS = ("gene_ids", "gene_id", "ensembl_id", "ensembl_ids", "ensembl", "feature_id", "ENSEMBL")
SYMBOL_COLUMNS = ("gene_symbols", "gene_symbol", "feature_name", "gene_name", "gene_names", "symbol", "SYMBOL")
FIDUCIAL_UM = 105.0  # diameter of a Visium slide's fiducial marks, as scale.py measures them
TPM_TOTAL = 1e6
# Probes of imaging panels that are no genes; HEST-1k's Xenium files hold them among the genes.
_CONTROL = re.compile(r"(blank|negcontrol|unassignedcodeword|deprecatedcodeword|intergenic_region|antisense_)", re.I)


class CountMatrix(Protocol):
    """One matrix of a table, not read yet."""

    @property
    def name(self) -> str:
        """As "X" or "layers/counts"."""

    @property
    def var(self) -> Any:
        """Its variables, a pandas.DataFrame (G, ...)."""

    def whole(self) -> bool:
        """Whether it seems to hold whole numbers only."""

    def read(self) -> Any:
        """`scipy.sparse.csr_array` (N, G) float32."""


class Observations(Protocol):
    """A table of observations as AnnData has it, in whatever store: `H5ad`, or a table in zarr."""

    uri: str

    @property
    def names(self) -> np.ndarray:
        """Names of the observations (N,)."""

    def obsm(self, *keys: str) -> np.ndarray | None:
        """The first of these that is there, as float64 (N, dimensions)."""

    def column(self, *names: str) -> np.ndarray | None:
        """The first of these columns of `obs` that is there (N,)."""

    def matrices(self) -> Iterator[CountMatrix]:
        """The matrices that may hold counts, the likeliest first."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """The image that is used, and how it relates to the positions."""

    uri: str | None
    size_px: tuple[int, int] | None = None
    factor: float = 1.0  # pixels of the image per pixel of the positions
    tag_um_per_px: float | None = None  # what the image's own file says


@dataclass(frozen=True, kw_only=True, eq=False)
class Spots:
    """The observations, before any is left out."""

    barcodes: np.ndarray  # (N,) str
    array_N2: np.ndarray  # column and row, NaN where there is no array
    xy_N2: np.ndarray  # pixels of the full-resolution image, NaN where there is none
    selected_N: np.ndarray  # False where the file says that no tissue lies on the spot
    lattice: Lattice | None


def the_library(file: H5ad) -> Library | None:
    """The one capture area of the file; raises `SourceError` (`one_section`) where there are several."""
    libraries = file.libraries()
    if len(libraries) > 1:
        named = ", ".join(library.name for library in libraries[:4])
        raise SourceError(
            f"{file.uri} holds {len(libraries)} sections ({named}); write one file a section.",
            rule="one_section",
            figure=float(len(libraries)),
            limit=1.0,
            file=file.uri,
        )
    return libraries[0] if libraries else None


def read_spots(file: Observations, xy_N2: np.ndarray | None = None) -> Spots:
    """The observations with their positions, those of the table unless `xy_N2` gives them.

    Raises `SourceError` where there are none (`positions_missing`), no spots (`empty_section`), or a barcode twice
    (`duplicate_barcodes`).
    """
    barcodes = file.names
    if not len(barcodes):
        raise holds_no(file.uri)
    check_unique(barcodes, file.uri)
    xy_N2 = _positions(file) if xy_N2 is None else xy_N2
    array_N2 = _array(file, barcodes)
    lattice = fit_lattice(array_N2, xy_N2)
    if lattice is None and (indexed_N2 := index_lattice(xy_N2)) is not None:
        lattice = fit_lattice(indexed_N2, xy_N2)
    return Spots(
        barcodes=barcodes, array_N2=array_N2, xy_N2=xy_N2, selected_N=_selected(file, len(barcodes)), lattice=lattice
    )


def as_slide(
    file: Observations,
    spots: Spots,
    picture: Picture,
    known: SlideMetadata,
    *,
    stated: Sequence[ScaleEvidence] = (),
    library: Library | None = None,
) -> Slide:
    """The slide. `stated` is what the source says of the scale of a full-resolution pixel, besides the pitch and the
    fiducial marks that are measured here."""
    known = _with_array(known, spots)
    scales = [
        replace(e, um_per_px=e.um_per_px / picture.factor)
        for e in (*_measured(file.uri, spots, known, library), *stated)
    ]
    told = [known.um_per_px, picture.tag_um_per_px, *(e.um_per_px for e in scales)]
    known = _with_spacing(known, spots, picture.factor, next((um for um in told if um), None))
    counts, var, unit = _counts(file, unit_name(known.expression_unit))
    symbols, ensembl_ids, kept_G = _genes(var, file.uri)
    if kept_G is not None:
        counts = counts[:, kept_G]
    usable = spots.selected_N & np.isfinite(spots.xy_N2).all(axis=1)
    xy_N2 = spots.xy_N2 * picture.factor
    order = np.flatnonzero(usable)
    if np.isfinite(spots.array_N2[order]).all():
        order = order[np.lexsort((spots.barcodes[order], spots.array_N2[order, 0], spots.array_N2[order, 1]))]
    return Slide(
        metadata=replace(known, expression_unit=unit),
        barcodes=spots.barcodes[order],
        array_row=spots.array_N2[order, 1].astype(np.float32),
        array_col=spots.array_N2[order, 0].astype(np.float32),
        xy_px=xy_N2[order],
        counts=counts[order],
        symbols=symbols,
        ensembl_ids=ensembl_ids,
        image=picture.uri,
        image_size_px=picture.size_px,
        scales=tuple(scales),
        flags=("image_reduced",) if picture.factor != 1.0 else (),
        refused=tuple(_ruled_out(file.uri, spots, i, xy_N2[i]) for i in np.flatnonzero(~usable).tolist()),
        matrix_file=file.uri,
    )


# -- positions ----------------------------------------------------------------------------------------------------


def _positions(file: Observations) -> np.ndarray:
    found = file.obsm(*POSITIONS)
    if found is None:
        pairs = ((file.column(x), file.column(y)) for x, y in POSITION_COLUMNS)
        found = next((np.stack([_numbers(x), _numbers(y)], axis=1) for x, y in pairs if x is not None is not y), None)
    if found is None or found.ndim != 2 or found.shape[1] < 2:
        raise SourceError(
            f"{file.uri} tells no positions; obsm['spatial'] with x and y in pixels of the full image is expected. "
            "Where it holds single cells, it is a reference and no section.",
            rule="positions_missing",
            figure=0.0,
            limit=1.0,
            file=file.uri,
        )
    return found[:, :2]


def _array(file: Observations, barcodes: np.ndarray) -> np.ndarray:
    """Column and row of each spot, from `obs` or from names like 10x21; NaN where neither tells."""
    for col, row in ARRAY_COLUMNS:
        columns, rows = file.column(col), file.column(row)
        if columns is not None and rows is not None:
            array_N2 = np.stack([_numbers(columns), _numbers(rows)], axis=1)
            if np.isfinite(array_N2).all():
                return array_N2
    named = [array_name(barcode) for barcode in barcodes]
    if all(named):
        return np.array(named, dtype=np.float64)
    return np.full((len(barcodes), 2), np.nan)


def _numbers(values: np.ndarray) -> np.ndarray:
    import pandas as pd

    return pd.to_numeric(pd.Series(values).astype(object), errors="coerce").to_numpy(dtype=np.float64)


def _selected(file: Observations, n: int) -> np.ndarray:
    values = file.column(*SELECTED)
    if values is None:
        return np.ones(n, dtype=bool)
    words = np.array([str(value).strip().lower() for value in values])
    off = np.isin(words, ("0", "0.0", "false"))
    # A column that holds something else, or that leaves nothing, does not tell where the tissue is.
    return ~off if not off.all() else np.ones(n, dtype=bool)


def _ruled_out(uri: str, spots: Spots, i: int, xy: np.ndarray) -> Spot:
    barcode = str(spots.barcodes[i])
    if not np.isfinite(xy).all():
        return Spot(barcode=barcode, rule="spot_position", reason="The spot has counts but no position.", file=uri)
    reason = "The file marks the spot as not under tissue (in_tissue or selected is 0)."
    return Spot(barcode=barcode, rule="spot_selected", reason=reason, x_px=float(xy[0]), y_px=float(xy[1]), file=uri)


# -- scale --------------------------------------------------------------------------------------------------------


def _with_array(known: SlideMetadata, spots: Spots) -> SlideMetadata:
    """The metadata with the technology's name as it is here, and with what the array tells."""
    if known.technology is not None:
        known = replace(known, technology=technology_name(known.technology))
    array = recognise(known.technology, spots.barcodes.tolist(), spots.lattice)
    if array is None:
        return known
    return replace(
        known,
        technology=array.technology,
        pitch_um=known.pitch_um or array.pitch_um,
        spot_diameter_um=known.spot_diameter_um or array.spot_diameter_um,
    )


def _measured(uri: str, spots: Spots, known: SlideMetadata, library: Library | None) -> list[ScaleEvidence]:
    """Micrometres a full-resolution pixel by the pitch and, on Visium, by the fiducial marks."""
    found = []
    if spots.lattice is not None and known.pitch_um is not None:
        found.append(ScaleEvidence(origin="pitch", um_per_px=known.pitch_um / spots.lattice.pitch_px, file=uri))
    fiducial_px = library.scalefactors.get("fiducial_diameter_fullres") if library else None
    if fiducial_px and known.technology == VISIUM.technology:
        found.append(ScaleEvidence(origin="fiducial", um_per_px=FIDUCIAL_UM / fiducial_px, file=uri))
    return found


def _with_spacing(known: SlideMetadata, spots: Spots, factor: float, um_per_px: float | None) -> SlideMetadata:
    """Where no array tells the pitch, it is that of the lattice, else the median distance to the nearest spot; and
    spots whose diameter nobody tells are taken to touch. `um_per_px` is of the image, `factor` its reduction."""
    pitch_um = known.pitch_um
    if pitch_um is None and um_per_px is not None:
        pitch_um = _spacing_px(spots) * factor * um_per_px
    return replace(known, pitch_um=pitch_um, spot_diameter_um=known.spot_diameter_um or pitch_um)


def _spacing_px(spots: Spots) -> float:
    from scipy.spatial import cKDTree

    if spots.lattice is not None:
        return spots.lattice.pitch_px
    xy_N2 = spots.xy_N2[np.isfinite(spots.xy_N2).all(axis=1)]
    return float(np.median(cKDTree(xy_N2).query(xy_N2, k=2)[0][:, 1]))


# -- counts and genes ---------------------------------------------------------------------------------------------


def _counts(file: Observations, stated: str | None) -> tuple[Any, Any, str]:
    """Counts (N, G), their variables, and their unit."""
    last: CountMatrix | None = None
    for matrix in file.matrices():
        last = matrix if matrix.name == "X" or last is None else last
        # A person's word that the unit is another says that no counts are meant.
        if stated in (None, COUNTS) and matrix.whole():
            counts = matrix.read()
            if (counts.data == np.rint(counts.data)).all():
                return counts, matrix.var, COUNTS
    if last is None:
        raise holds_no(file.uri, "matrix (X)")
    counts = last.read()
    totals = np.asarray(counts.sum(axis=1)).ravel()
    unit = "TPM" if len(totals) and np.allclose(totals[totals > 0], TPM_TOTAL, rtol=0.01) else NORMALISED
    return counts, last.var, stated or unit


def _genes(var: Any, uri: str) -> tuple[list[str], list[str | None] | None, np.ndarray | None]:
    """Symbols, Ensembl ids where there are any, and the columns that are genes where some are not."""
    names = [str(name) for name in var.index]
    symbols, ids = names, _column(var, ENSEMBL_COLUMNS)
    if names and _mostly_ensembl(names):
        ids = names
        told = _column(var, SYMBOL_COLUMNS)
        if told is not None:
            symbols = [symbol or name for symbol, name in zip(told, names, strict=True)]
    elif ids is not None and not _mostly_ensembl(ids):
        ids = None
    if not names:
        raise SourceError(f"{uri} names no genes.", rule="genes_named", figure=0.0, limit=1.0, file=uri)
    check_genes_named(symbols, uri)
    ensembl_ids = None if ids is None else [value if looks_like_ensembl(value) else None for value in ids]
    kinds = _column(var, ("feature_types",)) or [""] * len(names)
    genes = [
        kind in ("Gene Expression", "") and not _CONTROL.match(name) for kind, name in zip(kinds, names, strict=True)
    ]
    kept = np.flatnonzero(genes)
    if len(kept) in (0, len(names)):
        return symbols, ensembl_ids, None
    return [symbols[g] for g in kept], None if ensembl_ids is None else [ensembl_ids[g] for g in kept], kept


def _column(var: Any, names: Sequence[str]) -> list[str] | None:
    hit = next((name for name in names if name in var.columns), None)
    return None if hit is None else ["" if value != value or value is None else str(value) for value in var[hit]]


def _mostly_ensembl(names: Sequence[str]) -> bool:
    return sum(looks_like_ensembl(name) for name in names) > len(names) / 2
