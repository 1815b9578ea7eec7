"""Cells as spots of a slide: pooled on a lattice, or one by one. Shared by the formats that measure cells.

Axes: N cells, G genes, M rows of a table of positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from histolake.ingestion.readers.pooling import pool
from histolake.ingestion.slide import Slide, SlideMetadata, Spot
from histolake.platform.errors import SourceError

__all__ = ["Cells", "SpotChoice", "as_slide", "choose_spots", "locate", "pooled"]

WAYS = ("pooled", "cells")


@dataclass(frozen=True, kw_only=True, eq=False)
class Cells:
    """Cells with their counts and centroids."""

    names: np.ndarray  # (N,) str, unique
    xy_um_N2: np.ndarray  # float64, micrometres; NaN where no position is known
    counts_NG: Any  # scipy.sparse.csr_array float32
    symbols: list[str]  # G
    ensembl_ids: list[str | None] | None  # G
    matrix_file: str  # URI of the counts
    positions_file: str  # URI of the positions


@dataclass(frozen=True, kw_only=True)
class SpotChoice:
    """How cells become spots."""

    way: Literal["pooled", "cells"]
    pitch_um: float  # micrometres between centres; for cells the step that a niche's width counts in
    diameter_um: float  # micrometres
    keep_all: bool  # a cell between the circles counts to the nearest one


def choose_spots(options: Mapping[str, Any], known: SlideMetadata, file: str) -> SpotChoice:
    """The choice that a section's options and metadata make; raises `SourceError` (`metadata_valid`) on one that
    cannot be.

    Options are `spots`, `keep_all`, and the settings' widths `lattice_um`, `spot_um`, `cell_um`; the metadata's
    `pitch_um` and `spot_diameter_um` win over these.
    """
    way = options["spots"]
    if way not in WAYS:
        raise _invalid(f"spots = {way!r}; write {' or '.join(WAYS)}", file)
    widths = (options["lattice_um"], options["spot_um"]) if way == "pooled" else (options["cell_um"],) * 2
    pitch, diameter = known.pitch_um or float(widths[0]), known.spot_diameter_um or float(widths[1])
    if way == "pooled" and diameter > pitch:
        raise _invalid(
            f"spots of {diameter:g} um with {pitch:g} um between their centres; a cell would lie in two. Make pitch_um "
            "at least spot_diameter_um",
            file,
        )
    keep_all = str(options["keep_all"]).strip().lower() in ("true", "1", "yes")
    return SpotChoice(way=way, pitch_um=pitch, diameter_um=diameter, keep_all=keep_all)


def _invalid(what: str, file: str) -> SourceError:
    return SourceError(f"{file}: The metadata say {what}.", rule="metadata_valid", file=file)


def locate(names_N: np.ndarray, ids_M: np.ndarray, xy_M2: np.ndarray) -> np.ndarray:
    """(N, 2) the positions of the cells by their names; NaN for one that the table does not name."""
    order = np.argsort(ids_M, kind="stable")
    at = np.searchsorted(ids_M, names_N, sorter=order)
    row = order[np.minimum(at, len(order) - 1)] if len(order) else np.zeros(len(names_N), np.int64)
    xy_N2 = np.full((len(names_N), 2), np.nan)
    if len(order):
        hit = ids_M[row] == names_N
        xy_N2[hit] = xy_M2[row[hit]]
    return xy_N2


def as_slide(cells: Cells, spots: SpotChoice, known: SlideMetadata) -> Slide:
    """The slide, its positions in MICROMETRES (the reader takes them to the image) and its image still open.

    A cell without a position is refused (`spot_position`).
    """
    placed = np.isfinite(cells.xy_um_N2).all(axis=1)
    lost = tuple(
        Spot(
            barcode=str(cells.names[i]),
            rule="spot_position",
            reason="The cell has counts and no position.",
            file=cells.positions_file,
        )
        for i in np.flatnonzero(~placed).tolist()
    )
    base = Slide(
        metadata=_spaced(known, spots),
        barcodes=cells.names[placed],
        array_row=np.full(int(placed.sum()), np.nan, np.float32),
        array_col=np.full(int(placed.sum()), np.nan, np.float32),
        xy_px=cells.xy_um_N2[placed],
        counts=cells.counts_NG[np.flatnonzero(placed)],
        symbols=cells.symbols,
        ensembl_ids=cells.ensembl_ids,
        image=None,
        refused=lost,
        matrix_file=cells.matrix_file,
    )
    return base if spots.way == "cells" else pooled(base, spots)


def _spaced(known: SlideMetadata, spots: SpotChoice) -> SlideMetadata:
    return replace(known, pitch_um=spots.pitch_um, spot_diameter_um=spots.diameter_um)


def pooled(cells: Slide, spots: SpotChoice) -> Slide:
    """A slide of cells as one of pseudo-spots; the positions of both in MICROMETRES."""
    found = pool(
        cells.counts,
        cells.xy_px,
        pitch_um=spots.pitch_um,
        diameter_um=spots.diameter_um,
        keep_all=spots.keep_all,
    )
    names = [f"spot_{c:.0f}x{r:.0f}" for c, r in zip(found.array_col, found.array_row, strict=True)]
    flags = ["pseudo_spots"]
    if found.outside:
        flags.append(f"cells outside spots: {found.outside / len(cells):.0%}")
    return replace(
        cells,
        metadata=_spaced(cells.metadata, spots),
        barcodes=np.array(names, dtype=str),
        array_row=found.array_row,
        array_col=found.array_col,
        xy_px=found.xy_um_S2,
        counts=found.counts_SG,
        flags=(*cells.flags, *flags),
    )
