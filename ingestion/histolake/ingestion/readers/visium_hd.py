"""Visium HD: the squares of 2, 8 and 16 um that Space Ranger 3 and later counts in, read as spots or as bins.

    binned_outputs/square_002um/filtered_feature_bc_matrix.h5
    binned_outputs/square_002um/spatial/tissue_positions.parquet
    binned_outputs/square_002um/spatial/scalefactors_json.json    bin_size_um, microns_per_pixel, tissue_hires_scalef
    binned_outputs/square_008um/ ...                              the same, of 8 um; and of 16 um
    spatial/tissue_hires_image.png, tissue_lowres_image.png       here, or in the spatial/ of each size
    *.btf, *.tif, ...                                             the slide image, beside binned_outputs/ or outs/

What is read is a setting (`visium_hd.bins`) that a section's own `section.json` may overrule (`"bins": "8"`):

- `pseudo-visium`, the default: discs of 55 um, 100 um apart on a hexagonal lattice, summed from the finest bins that
  are there. These pairs compare with those of Visium slides. The share of the counts between the discs is told in a
  flag; a disc less than half under tissue (`visium_hd.min_covered`) is refused as `spot_covered`.
- a width in micrometres, any multiple of 2: squares side by side, from the coarsest bins that divide it, counts
  conserved.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from histolake.ingestion.readers import Listing, Source
from histolake.ingestion.readers.beside import read_beside, with_beside
from histolake.ingestion.readers.bins import (
    FINEST_UM,
    Grid,
    PooledBins,
    Target,
    VisiumHDSettings,
    pool_bins,
    read_grid,
    target_of,
)
from histolake.ingestion.readers.matrices import Genes, open_h5
from histolake.ingestion.readers.one_species import genes_of_one_species
from histolake.ingestion.readers.space_ranger import spatial_roles
from histolake.ingestion.readers.visium_image import choose_image, image_roles, read_scalefactors
from histolake.ingestion.slide import ScaleEvidence, Slide, SlideMetadata, Spot
from histolake.platform.errors import SourceError, UsageError
from histolake.platform.settings import load_settings
from histolake.platform.storage import Location

__all__ = ["VisiumHDReader"]

BINNED = "binned_outputs"
COUNTS = "filtered_feature_bc_matrix.h5"
POSITIONS = "tissue_positions.parquet"
MIN_MATCHED = 0.5  # fraction of the matrix's bins that the positions must have under tissue
_SQUARE = re.compile(r"square_(\d{3})um")


class VisiumHDReader:
    """Reads the folder described above."""

    name = "visium-hd"
    looks_for = f"{BINNED}/square_*um/{COUNTS} with spatial/{POSITIONS}"

    def find(self, folder: Listing) -> Sequence[Source]:
        """The slide whose bins are in this folder; the folder may be outs/, binned_outputs/ or that of one size."""
        squares = _squares(folder)
        if not squares:
            return []
        beside, metadata = read_beside(folder)
        settings = load_settings().section("visium_hd")
        assert isinstance(settings, VisiumHDSettings)
        bins = str(metadata.get("bins") or settings.bins)
        bin_um = _bins_to_read(bins, list(squares))
        files = _files(squares[bin_um], _outs(folder), metadata.get("image")) if bin_um else {}
        inner = folder.location.name == BINNED or _SQUARE.fullmatch(folder.location.name)
        return [
            Source(
                reader=self.name,
                uri=folder.location.uri,
                files=files | beside,
                metadata={**metadata, "bins": bins, "min_covered": settings.min_covered, "bin_um": bin_um},
                section=_outs(folder)[-1].location.name if inner else None,
            )
        ]

    def read(self, source: Source, metadata: Mapping[str, Any]) -> Slide:
        """The section as a slide; positions in pixels of the image that it is read with."""
        target = _target(source)
        self._check_complete(source)
        files, counts = source.files, source.files["counts"]
        stated = with_beside(SlideMetadata(), source).updated(dict(metadata))
        factors = read_scalefactors(files["scalefactors"])
        grid = read_grid(files["positions"], _bin_um(factors, source))
        with open_h5(counts) as stored:
            species, of_species = genes_of_one_species(stored.genes.ids, stored.genes.genomes, stated.species, counts)
            pooled, genes = pool_bins(stored, grid, target), stored.genes
        _check_matched(pooled, counts, grid)
        known = SlideMetadata(
            species=species,
            technology="Visium HD",
            expression_unit="counts",
            spot_diameter_um=target.diameter_um,
            pitch_um=target.pitch_um,
        )
        known = with_beside(known, source).updated(dict(metadata))
        centres_px = grid.xy_px(target.centres_um(pooled.row, pooled.col))
        choice = choose_image(files, factors, centres_px, known.image)
        scales = [*choice.evidence(grid.um_per_px, files, None)]
        if "microns_per_pixel" in factors:
            um_per_px = factors["microns_per_pixel"] / choice.scale
            scales.append(ScaleEvidence(origin="source", um_per_px=um_per_px, file=files["scalefactors"]))
        limit = float(source.metadata["min_covered"])
        enough = pooled.covered >= (0.0 if target.tiles else limit)
        spots = _Spots(pooled, target, genes, of_species, centres_px * choice.scale)
        return spots.slide(
            enough,
            metadata=known,
            image=choice.uri,
            scales=tuple(scales),
            flags=(*genes.flags, *choice.flags, *_between(pooled, target)),
            refused=tuple(spots.bare(i, limit, grid) for i in np.flatnonzero(~enough).tolist()),
            matrix_file=counts,
        )

    def _check_complete(self, source: Source) -> None:
        folder = Location.parse(source.uri)
        wanted = {
            "counts": COUNTS,
            "positions": f"spatial/{POSITIONS}",
            "scalefactors": "spatial/scalefactors_json.json",
        }
        missing = [name for role, name in wanted.items() if role not in source.files]
        if source.metadata["bin_um"] is None:
            raise SourceError(
                f"{source.uri} has no bins that {source.metadata['bins']} um can be made of; that needs "
                f"square_{FINEST_UM:03d}um, or bins of a width that divides it. Set visium_hd.bins to what is there.",
                rule="missing_file",
                figure=float(len(missing)),
                limit=0.0,
                file=folder.join(f"{BINNED}/square_{FINEST_UM:03d}um").uri,
            )
        if missing:
            raise SourceError(
                f"{source.uri} lacks {' and '.join(missing)} of its bins of {source.metadata['bin_um']} um; a "
                f"{self.name} section needs {self.looks_for}.",
                rule="missing_file",
                figure=float(len(missing)),
                limit=0.0,
                file=folder.join(missing[0]).uri,
            )


class _Spots:
    """PooledBins spots as what a slide is made of."""

    def __init__(
        self, pooled: PooledBins, target: Target, genes: Genes, of_species: np.ndarray | None, xy_px: np.ndarray
    ) -> None:
        self._pooled, self._xy_px = pooled, xy_px
        self._barcodes = [target.barcode(r, c) for r, c in zip(pooled.row.tolist(), pooled.col.tolist(), strict=True)]
        self._genes = genes
        self._chosen = None if of_species is None else np.flatnonzero(of_species)

    def slide(self, keep: np.ndarray, **rest: Any) -> Slide:
        """The slide of the spots that are kept."""
        pooled, at = self._pooled, np.flatnonzero(keep)
        counts, symbols, ensembl = pooled.counts_SG, self._genes.symbols, self._genes.ensembl_ids
        if len(at) < len(keep):
            counts = counts[at]
        if self._chosen is not None:
            counts = counts[:, self._chosen]
            symbols, ensembl = [symbols[g] for g in self._chosen], [ensembl[g] for g in self._chosen]
            rest["flags"] = (*rest["flags"], "left out: other species")
        return Slide(
            barcodes=np.array(self._barcodes, dtype=str)[at],
            array_row=pooled.row[at].astype(np.float32),
            array_col=pooled.col[at].astype(np.float32),
            xy_px=self._xy_px[at],
            counts=counts,
            symbols=symbols,
            ensembl_ids=ensembl,
            **rest,
        )

    def bare(self, i: int, limit: float, grid: Grid) -> Spot:
        """A spot too little of which lies under tissue."""
        covered = float(self._pooled.covered[i])
        return Spot(
            barcode=self._barcodes[i],
            rule="spot_covered",
            reason=f"{covered:.0%} of the pseudo-spot lie under tissue; at least {limit:.0%} must.",
            x_px=float(self._xy_px[i, 0]),
            y_px=float(self._xy_px[i, 1]),
            figure=covered,
            limit=limit,
            file=grid.file,
        )


def _squares(folder: Listing) -> dict[int, Listing]:
    """Width in um -> the folder of bins of that width."""
    own = _SQUARE.fullmatch(folder.location.name)
    if own:
        return {int(own[1]): folder} if folder.file(COUNTS, f"spatial/{POSITIONS}") else {}
    inside = next((child for name in folder.folders if name.endswith(BINNED) and (child := folder.child(name))), folder)
    found = {int(match[1]): inside.child(name) for name in inside.folders if (match := _SQUARE.fullmatch(name))}
    return {width: square for width, square in sorted(found.items()) if width and square is not None}


def _outs(folder: Listing) -> list[Listing]:
    """The folders in which the slide's own images may lie: that of the pipeline, and the one above `outs/`."""
    places = [folder]
    if _SQUARE.fullmatch(places[-1].location.name):
        places.append(Listing(places[-1].location.parent()))
    for inner in (BINNED, "outs"):
        if places[-1].location.name == inner:
            places.append(Listing(places[-1].location.parent()))
    return places


def _bins_to_read(bins: str, there: list[int]) -> int | None:
    """Squares are made of the coarsest bins that divide them, for fewer are read; discs of the finest ones."""
    try:
        target = target_of(bins)
    except UsageError:
        return there[0]  # told where the section is read
    if not target.tiles:
        return there[0]
    return next((width for width in reversed(there) if target.pitch_um % width == 0), None)


def _files(square: Listing, outs: list[Listing], named: str | None) -> dict[str, str]:
    files: dict[str, str] = {}
    for place in [*reversed(outs), square]:
        spatial = place.child("spatial")
        files |= spatial_roles(spatial) if spatial else {}
    positions, counts = square.file(f"spatial/{POSITIONS}"), square.file(COUNTS)
    files = {role: uri for role, uri in files.items() if role != "positions"}
    files |= {"positions": positions} if positions else {}
    files |= {"counts": counts} if counts else {}
    return files | image_roles(outs, named)


def _target(source: Source) -> Target:
    try:
        return target_of(str(source.metadata["bins"]))
    except UsageError as error:
        file = source.files.get("metadata", source.uri)
        raise SourceError(f"{file}: {error}", rule="metadata_valid", file=file) from error


def _bin_um(factors: Mapping[str, float], source: Source) -> float:
    """The width of a bin, as the folder's name says and the scale factors must."""
    named = float(source.metadata["bin_um"])
    said = factors.get("bin_size_um", named)
    if said != named:
        raise SourceError(
            f"{source.files['scalefactors']} says bin_size_um = {said:g} for the folder of {named:g} um bins.",
            rule="positions_valid",
            figure=said,
            limit=named,
            file=source.files["scalefactors"],
        )
    return named


def _check_matched(pooled: PooledBins, counts: str, grid: Grid) -> None:
    if pooled.matched < MIN_MATCHED:
        raise SourceError(
            f"Only {pooled.matched:.0%} of the bins of {counts} lie under tissue by {grid.file}; at least "
            f"{MIN_MATCHED:.0%} must. Give the positions that belong to these counts.",
            rule="barcodes_match",
            figure=pooled.matched,
            limit=MIN_MATCHED,
            file=grid.file,
        )


def _between(pooled: PooledBins, target: Target) -> tuple[str, ...]:
    """What part of the counts is in no spot."""
    share = pooled.outside / max(pooled.in_spots + pooled.outside, 1.0)
    told = (f"outside_spots: {share:.0%} of counts",) if pooled.outside else ()
    return told if target.tiles else ("pseudo_spots", *told)
