"""Space Ranger 1 to 4: what `spaceranger count` writes for a Visium slide, as its folder `outs/` or file by file.

    filtered_feature_bc_matrix.h5, or a folder of that name    counts; the raw matrix where there is no filtered one
    spatial/tissue_positions_list.csv, tissue_positions.csv or tissue_positions.parquet
    spatial/scalefactors_json.json
    spatial/tissue_hires_image.png, tissue_lowres_image.png    reduced copies of the slide image
    *.tif, *.jpg, ...                                          the slide image, beside these files or beside outs/
    section.json                                               optional: what is known about the section

Names may begin with a sample's name (`S1_filtered_feature_bc_matrix.h5` with `S1_spatial/`, `spatial/` or the files of
`spatial/` themselves), and one folder may hold several samples so.

Spots are 55 um wide on a hexagonal lattice with 100 um between neighbours: even and odd columns alternate, so that two
columns are 100 um apart and two rows 86.6 um. The bins of a Visium HD slide belong to `visium_hd.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from histolake.ingestion.readers import Listing, Source
from histolake.ingestion.readers.beside import read_beside, with_beside
from histolake.ingestion.readers.matrices import Matrix, read_matrix
from histolake.ingestion.readers.one_species import genes_of_one_species
from histolake.ingestion.readers.refusals import check_files
from histolake.ingestion.readers.visium_image import choose_image, image_roles, read_scalefactors
from histolake.ingestion.readers.visium_positions import Positions, fit_array, read_positions
from histolake.ingestion.slide import Slide, SlideMetadata, Spot
from histolake.platform.storage import Location

__all__ = ["DIAMETER_UM", "PITCH_UM", "ROW_PER_PITCH", "SpaceRangerReader", "spatial_roles"]

PITCH_UM = 100.0
DIAMETER_UM = 55.0
ROW_PER_PITCH = 3**0.5 / 2  # rows of a hexagonal lattice, against the distance of neighbours
MAX_OFF_PITCH = 0.25  # root mean square distance of the positions from the lattice, in pitches

POSITIONS = tuple(
    name + packed
    for name in ("tissue_positions.csv", "tissue_positions_list.csv", "tissue_positions.parquet")
    for packed in ("", ".gz")
    if not (packed and name.endswith("parquet"))
)
SPATIAL = {
    "positions": POSITIONS,
    "scalefactors": ("scalefactors_json.json", "scalefactors_json.json.gz"),
    "hires image": ("tissue_hires_image.png",),
    "lowres image": ("tissue_lowres_image.png",),
}
CYTASSIST = "cytassist_image.tiff"
# Which matrix of a sample is read: the first of these that is there.
KINDS = ("filtered.h5", "filtered", "raw.h5", "raw")
_MATRIX = re.compile(r"(?P<prefix>.*?)(?P<kind>filtered|raw)_feature_bc_matrix(?P<h5>\.h5)?")
_BINS = re.compile(r"square_\d{3}um")


class SpaceRangerReader:
    """Reads the folder described above."""

    name = "space-ranger"
    looks_for = "filtered_feature_bc_matrix[.h5] with spatial/tissue_positions*"

    def find(self, folder: Listing) -> Sequence[Source]:
        """A sample for each matrix; a `spatial/` with positions alone is one too, whose counts are missing."""
        if _is_hd(folder):
            return []
        matrices = _matrices(folder)
        if not matrices and _has_positions(folder):
            matrices = {"": None}
        return [self._source(folder, prefix, counts, len(matrices) == 1) for prefix, counts in matrices.items()]

    def _source(self, folder: Listing, prefix: str, counts: str | None, alone: bool) -> Source:
        spatial = folder.child(f"{prefix}spatial") or (folder.child("spatial") if alone else None)
        files = spatial_roles(spatial) if spatial else spatial_roles(folder, prefix)
        metadata_files, metadata = read_beside(folder) if alone else ({}, {})
        beside_outs = [Listing(folder.location.parent())] if alone and folder.location.name == "outs" else []
        files |= image_roles([folder, *beside_outs], metadata.get("image"), "" if alone else prefix)
        files |= metadata_files | ({"counts": counts} if counts else {})
        if (spatial or folder).file(CYTASSIST, prefix + CYTASSIST):
            metadata = {"cytassist": True, **metadata}
        if alone:
            return Source(reader=self.name, uri=folder.location.uri, files=files, metadata=metadata)
        owns = [place.location.uri for place in (spatial, folder.child((counts or "").rsplit("/", 1)[-1])) if place]
        section = prefix.strip("_-. ")
        return Source(
            reader=self.name, uri=str(counts), files=files, metadata=metadata, section=section, owns=tuple(owns)
        )

    def read(self, source: Source, metadata: Mapping[str, Any]) -> Slide:
        """The section as a slide; positions in pixels of the image that it is read with."""
        self._check_complete(source)
        stated = with_beside(SlideMetadata(), source).updated(dict(metadata))
        matrix = read_matrix(source.files["counts"])
        species, of_species = genes_of_one_species(
            matrix.genes.ids, matrix.genes.genomes, stated.species, source.files["counts"]
        )
        positions = read_positions(source.files["positions"])
        factors = read_scalefactors(source.files["scalefactors"]) if "scalefactors" in source.files else {}
        known = SlideMetadata(
            species=species,
            technology=_technology(source, matrix, factors),
            expression_unit="counts",
            spot_diameter_um=DIAMETER_UM,
            pitch_um=PITCH_UM,
        )
        known = with_beside(known, source).updated(dict(metadata))
        choice = choose_image(source.files, factors, positions.xy_px, known.image)
        pitch_um = known.pitch_um or PITCH_UM
        um_per_px = fit_array(
            _array_um(positions, pitch_um), positions.xy_px, positions.file, limit_um=MAX_OFF_PITCH * pitch_um
        )
        slide = _assemble(matrix, positions, choice.scale)
        flags = [*matrix.genes.flags, *choice.flags, *(["left out: other species"] if of_species is not None else [])]
        return replace(
            _with_genes(slide, matrix, of_species),
            metadata=known,
            image=choice.uri,
            scales=choice.evidence(um_per_px, source.files, factors.get("fiducial_diameter_fullres")),
            flags=tuple(flags),
        )

    def _check_complete(self, source: Source) -> None:
        folder = (
            Location.parse(source.uri)
            if source.uri != source.files.get("counts")
            else Location.parse(source.uri).parent()
        )
        wanted = {"counts": "filtered_feature_bc_matrix.h5", "positions": f"spatial/{POSITIONS[0]}"}
        check_files(source, wanted, self.looks_for, folder)


def spatial_roles(folder: Listing, prefix: str = "") -> dict[str, str]:
    """The files of a `spatial/` as roles of a source."""
    found = {role: folder.file(*(prefix + name for name in names)) for role, names in SPATIAL.items()}
    return {role: uri for role, uri in found.items() if uri is not None}


def _matrices(folder: Listing) -> dict[str, str | None]:
    """Prefix of each sample in the folder -> URI of the matrix to read."""
    best: dict[str, tuple[int, str]] = {}
    for names, ending in ((folder.files, ".h5"), (folder.folders, "")):
        for name in names:
            match = _MATRIX.fullmatch(name)
            if match and (match["h5"] or "") == ending:
                rank = KINDS.index(match["kind"] + ending)
                prefix = match["prefix"]
                best[prefix] = min(best.get(prefix, (len(KINDS), "")), (rank, folder.location.join(name).uri))
    # Archives of one sample, unpacked side by side: some name it, some do not, and there is one `spatial/`.
    shared = [prefix for prefix in best if not _has_own_spatial(folder, prefix)]
    if "" in shared and len(shared) == 2:
        best[shared[0]] = min(best.pop(prefix) for prefix in list(shared))
    return {prefix: uri for prefix, (_, uri) in sorted(best.items())}


def _has_own_spatial(folder: Listing, prefix: str) -> bool:
    own = f"{prefix}spatial" in folder.folders or folder.file(*(prefix + name for name in POSITIONS)) is not None
    return bool(prefix) and own


def _has_positions(folder: Listing) -> bool:
    spatial = folder.child("spatial")
    return spatial is not None and spatial.file(*POSITIONS) is not None


def _is_hd(folder: Listing) -> bool:
    """Whether these are the bins of a Visium HD slide, or the folder above them."""
    if _BINS.fullmatch(folder.location.name) or any(name.endswith("binned_outputs") for name in folder.folders):
        return True
    scalefactors = folder.file("spatial/scalefactors_json.json")
    return scalefactors is not None and b'"bin_size_um"' in Location.parse(scalefactors).read_bytes()


def _technology(source: Source, matrix: Matrix, factors: Mapping[str, float]) -> str:
    """CytAssist slides are told by the instrument's picture, its registration, or the slide's chemistry (V4, V5)."""
    chemistry = matrix.attributes.get("chemistry_description", "")
    cytassist = "cytassist" in source.metadata or "regist_target_img_scalef" in factors
    return "Visium CytAssist" if cytassist or re.search(r"\bV[45]\b", chemistry) else "Visium"


def _array_um(positions: Positions, pitch_um: float) -> np.ndarray:
    """Positions on the array in micrometres (x, y)."""
    return np.stack([positions.array_col * pitch_um / 2, positions.array_row * pitch_um * ROW_PER_PITCH], axis=1)


def _assemble(matrix: Matrix, positions: Positions, scale: float) -> Slide:
    """Counts and positions joined by barcode, in raster order; without metadata and image."""
    order = np.argsort(positions.barcodes)
    place = np.searchsorted(positions.barcodes[order], matrix.barcodes)
    index = order[np.minimum(place, len(order) - 1)]
    known = positions.barcodes[index] == matrix.barcodes
    found = np.flatnonzero(known & positions.in_tissue[index])
    at = index[found]
    raster = np.lexsort((matrix.barcodes[found], positions.array_col[at], positions.array_row[at]))
    found, at = found[raster], at[raster]
    refused = [
        _ruled_out(str(matrix.barcodes[i]), positions, int(index[i]) if known[i] else None, scale)
        for i in np.flatnonzero(~(known & positions.in_tissue[index]))
    ]
    return Slide(
        metadata=SlideMetadata(),
        barcodes=matrix.barcodes[found],
        array_row=positions.array_row[at].astype(np.float32),
        array_col=positions.array_col[at].astype(np.float32),
        xy_px=positions.xy_px[at] * scale,
        counts=matrix.counts_NG if np.array_equal(found, np.arange(len(matrix.barcodes))) else matrix.counts_NG[found],
        symbols=matrix.genes.symbols,
        ensembl_ids=matrix.genes.ensembl_ids,
        image=None,
        refused=tuple(refused),
        matrix_file=matrix.file,
    )


def _with_genes(slide: Slide, matrix: Matrix, keep_G: np.ndarray | None) -> Slide:
    """The slide with some of its genes alone."""
    if keep_G is None:
        return slide
    chosen = np.flatnonzero(keep_G)
    ensembl = matrix.genes.ensembl_ids
    return replace(
        slide,
        counts=slide.counts[:, chosen],
        symbols=[matrix.genes.symbols[g] for g in chosen],
        ensembl_ids=[ensembl[g] for g in chosen],
    )


def _ruled_out(barcode: str, positions: Positions, index: int | None, scale: float) -> Spot:
    if index is None:
        reason = "The spot has counts but no position."
        return Spot(barcode=barcode, rule="spot_position", reason=reason, file=positions.file)
    x_px, y_px = positions.xy_px[index] * scale
    reason = "The positions' file marks the spot as not under tissue (in_tissue is 0)."
    return Spot(
        barcode=barcode,
        rule="spot_selected",
        reason=reason,
        x_px=float(x_px),
        y_px=float(y_px),
        figure=0.0,
        limit=1.0,
        file=positions.file,
    )
