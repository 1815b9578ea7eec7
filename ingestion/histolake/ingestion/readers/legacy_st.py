"""Legacy Spatial Transcriptomics: a folder with `counts.tsv`, `spots.tsv` and an image.

    counts.tsv[.gz]       a row a spot, named "XxY"; a column a gene
    spots.tsv[.gz]        x y new_x new_y pixel_x pixel_y selected
    image.jpg|png|tif     H&E; a section without it comes in for its expression alone
    section.json          optional: what is known about the section (`beside.py`)

The spots of the array lie 200 um apart and are numbered from 1, and their pixels are
`pixel_x = pitch_x (new_x - 1)`: the frame of the image is 32 pitches wide and 34 high. So the scale is fitted over
all spots (their positions are adjusted by hand, one by one: distances between neighbours are no scale), and an image
whose sides are one and the same fraction of that frame is a reduced copy, whose positions are reduced with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from histolake.ingestion.readers import Listing, Source
from histolake.ingestion.readers.beside import read_beside, with_beside
from histolake.ingestion.readers.refusals import check_files
from histolake.ingestion.readers.st_tables import Positions, read_counts, read_positions
from histolake.ingestion.slide import ScaleEvidence, Slide, SlideMetadata, Spot
from histolake.platform.errors import SourceError

__all__ = ["LegacySTReader"]

COUNTS = ("counts.tsv.gz", "counts.tsv")
SPOTS = ("spots.tsv", "spots.tsv.gz")
IMAGES = ("image.jpg", "image.jpeg", "image.png", "image.tif", "image.tiff")

PITCH_UM = 200.0
DIAMETER_UM = 100.0
FRAME_PITCHES = (32.0, 34.0)  # width and height of the array's image
SAME = 0.01  # two scales agree when they differ by less than this fraction
SAME_STATED = 0.05  # the same for a scale that a person wrote down


class LegacySTReader:
    """Reads the folder described above."""

    name = "legacy-st"
    looks_for = "counts.tsv[.gz] with spots.tsv, and image.jpg, .png or .tif"

    def find(self, folder: Listing) -> Sequence[Source]:
        """A folder that has the counts or the positions is ours; what it lacks is found out when it is read."""
        roles = {"counts": COUNTS, "spots": SPOTS, "image": IMAGES}
        files = {role: uri for role, names in roles.items() if (uri := folder.file(*names))}
        if not {"counts", "spots"} & set(files):
            return ()
        beside, metadata = read_beside(folder)
        return (Source(reader=self.name, uri=folder.location.uri, files=files | beside, metadata=metadata),)

    def read(self, source: Source, metadata: Mapping[str, Any]) -> Slide:
        """The section as a slide; positions in pixels of the image as it is."""
        check_files(source, {"counts": COUNTS[0], "spots": SPOTS[0]}, self.looks_for)
        known = SlideMetadata(
            technology="Spatial Transcriptomics",
            expression_unit="counts",
            spot_diameter_um=DIAMETER_UM,
            pitch_um=PITCH_UM,
        )
        known = with_beside(known, source).updated(dict(metadata))
        table = read_counts(source.files["counts"])
        positions = read_positions(source.files["spots"])
        image = known.image or source.files.get("image")
        image_size = _image_size(image) if image else None
        scale = _scale(positions, image_size, known)
        slide = _assemble(source, table, positions, scale)
        return replace(
            slide,
            metadata=known,
            image=image,
            image_size_px=image_size,
            scales=(ScaleEvidence(origin="pitch", um_per_px=scale.um_per_px, file=positions.file),),
            flags=("image_reduced",) if scale.reduction != 1.0 else (),
        )


@dataclass(frozen=True, kw_only=True)
class _Scale:
    um_per_px: float  # of the image as it is
    reduction: float  # pixels of the image per pixel of the positions; 1 for a full image


def _image_size(uri: str) -> tuple[int, int]:
    from histolake.ingestion.images import open_image

    image = open_image(uri)
    try:
        return image.size_px
    finally:
        image.close()


def _scale(positions: Positions, image_size: tuple[int, int] | None, known: SlideMetadata) -> _Scale:
    """Micrometres a pixel of the image by the array's pitch, and how far the image is reduced against the positions."""
    pitch_px, offset_px = _fitted_pitch(positions)
    fitted = (known.pitch_um or PITCH_UM) / float(pitch_px.mean())
    if image_size is None:
        return _Scale(um_per_px=fitted, reduction=1.0)
    frame = np.array(FRAME_PITCHES) * pitch_px
    ratio = np.array(image_size) / frame
    framed = bool(np.all(np.abs(offset_px + pitch_px) < 0.02 * pitch_px) and abs(ratio[0] / ratio[1] - 1) < SAME)
    reduction = float(ratio.mean()) if framed and abs(ratio.mean() - 1) >= SAME else 1.0
    if known.um_per_px is not None and abs(fitted / known.um_per_px - 1) < SAME_STATED:
        reduction = 1.0  # a stated scale is of the image as it is: it says that the image is not reduced
    return _Scale(um_per_px=fitted / reduction, reduction=reduction)


def _fitted_pitch(positions: Positions) -> tuple[np.ndarray, np.ndarray]:
    """Pixels a pitch and pixels of array position 0, for x and y, by least squares over all spots."""
    fits = []
    for axis in (0, 1):
        along = positions.array_N2[:, axis]
        if np.ptp(along) < 1:
            raise SourceError(
                f"All spots lie in one {'column' if axis == 0 else 'row'}; the scale cannot be fitted.",
                rule="positions_spread",
                figure=float(np.ptp(along)),
                limit=1.0,
                file=positions.file,
            )
        fits.append(np.polyfit(along, positions.pixel_N2[:, axis], 1))
    slope, intercept = np.array(fits).T
    if (slope <= 0).any():
        raise SourceError(
            f"Pixels fall while the array's positions rise ({slope.min():.1f} px a step); the positions are mirrored.",
            rule="positions_spread",
            figure=float(slope.min()),
            limit=0.0,
            file=positions.file,
        )
    return slope, intercept


def _assemble(source: Source, table: Any, positions: Positions, scale: _Scale) -> Slide:
    """Counts and positions joined by barcode, in raster order."""
    where = {barcode: i for i, barcode in enumerate(positions.barcodes)}
    index = np.array([where.get(barcode, -1) for barcode in table.barcodes], dtype=np.int64)
    chosen = (index >= 0) & positions.selected_N[index]
    found = np.flatnonzero(chosen)
    refused = [_ruled_out(source, table.barcodes[i], positions, index[i], scale) for i in np.flatnonzero(~chosen)]
    array_N2 = positions.array_N2[index[found]]
    barcodes = np.array([table.barcodes[i] for i in found], dtype=str)
    order = np.lexsort((barcodes, array_N2[:, 0], array_N2[:, 1]))
    return Slide(
        metadata=SlideMetadata(),
        barcodes=barcodes[order],
        array_row=array_N2[order, 1].astype(np.float32),
        array_col=array_N2[order, 0].astype(np.float32),
        xy_px=positions.pixel_N2[index[found]][order] * scale.reduction,
        counts=table.counts_NG[found[order]],
        symbols=table.symbols,
        ensembl_ids=None,
        image=None,
        refused=tuple(refused),
        matrix_file=source.files["counts"],
    )


def _ruled_out(source: Source, barcode: str, positions: Positions, index: int, scale: _Scale) -> Spot:
    file = source.files["spots"]
    if index < 0:
        return Spot(barcode=barcode, rule="spot_position", reason="The spot has counts but no position.", file=file)
    x_px, y_px = positions.pixel_N2[index] * scale.reduction
    reason = "The positions' file marks the spot as not under tissue (selected is 0)."
    return Spot(barcode=barcode, rule="spot_selected", reason=reason, x_px=float(x_px), y_px=float(y_px), file=file)
