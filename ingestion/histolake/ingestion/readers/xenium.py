"""Xenium: a bundle of cells, their counts, and an H&E image that was aligned to it.

    experiment.xenium               JSON: pixel_size, panel_organism, ... (0.2125 um a pixel where it is not there)
    cells.parquet | cells.csv.gz    cell_id, x_centroid, y_centroid in micrometres, and more
    cell_feature_matrix.h5          counts, or the folder cell_feature_matrix/ in Matrix Market format
    *_he_image.ome.tif              H&E, in the bundle or beside it, or the `image` of the metadata
    *_he_imagealignment.csv         the matrix that takes its pixels to those of the morphology image

The morphology images (DAPI and other stains) are no histology and are never taken for it. Features that are no genes
(control probes, codewords) are left out. A centroid in micrometres, divided by the pixel size, is a pixel of the
morphology image; the inverse of the matrix takes it to H&E. Without H&E the section comes in without an image, its
positions in pixels of the morphology image.

Pairs come out in one of two ways. `pooled`, the default, lays pseudo-spots of 55 um on a hexagonal lattice of 100 um
and adds up the cells whose centroid lies in each, so that a section compares with Visium; the cells between the
circles, about 73% of an even tissue, are left out unless `keep_all` gives each to the nearest centre. `cells` makes
every cell a spot of `cell_um`, which is a diameter for cutting patches and not that of the cell.

A panel has 300 to 5,000 genes, so that few spots and no cell of a small panel pass `quality.min_genes` as it is meant
for whole transcriptomes (more than 200): set it lower for a cohort of panels.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np

from histolake.ingestion.readers import Listing, Source
from histolake.ingestion.readers.alignment import Affine, read_matrix_csv
from histolake.ingestion.readers.beside import place_of, read_beside, with_beside
from histolake.ingestion.readers.cells import Cells, as_slide, choose_spots, locate
from histolake.ingestion.readers.matrices import Matrix, read_matrix
from histolake.ingestion.readers.refusals import check_files, truncated
from histolake.ingestion.slide import ScaleEvidence, Slide, SlideMetadata
from histolake.ingestion.species import species_name
from histolake.platform.errors import SourceError
from histolake.platform.storage import Location

__all__ = ["XeniumReader", "XeniumSettings"]

EXPERIMENT = "experiment.xenium"
CELLS = ("cells.parquet", "cells.csv.gz", "cells.csv")
MATRIX = "cell_feature_matrix"
IMAGE_ENDINGS = (".ome.tif", ".ome.tiff", ".tif", ".tiff")  # the matrix belongs to the first of them that is there
HE = "he_image"
ALIGNMENT = "alignment.csv"  # after the image's name without its ending
EXPORTED = "matrix.csv"  # Xenium Explorer's own name for it
IDENTITY = "identity"  # as `alignment` of the metadata: the pixels of the H&E are those of the morphology image
PIXEL_UM = 0.2125
CONTROLS = (
    "Negative Control Probe",
    "Negative Control Codeword",
    "Unassigned Codeword",
    "Blank Codeword",
    "Deprecated Codeword",
    "Genomic Control",
)


@dataclass(frozen=True, kw_only=True)
class XeniumSettings:
    """How cells become spots. A section's own `spots`, `keep_all`, `pitch_um` and `spot_diameter_um` win."""

    spots: Literal["pooled", "cells"] = "pooled"  # pseudo-spots on a lattice, or every cell for itself
    lattice_um: float = 100.0  # micrometres between the centres of pseudo-spots (Visium's)
    spot_um: float = 55.0  # micrometres, diameter of a pseudo-spot (Visium's)
    keep_all: bool = False  # true: a cell between the circles counts to the nearest one
    cell_um: float = 20.0  # micrometres, diameter and pitch of a cell's spot: the cell and what touches it


class XeniumReader:
    """Reads the bundle described above."""

    name = "xenium"
    looks_for = "experiment.xenium, or cells.parquet or .csv.gz with cell_feature_matrix"

    def find(self, folder: Listing) -> Sequence[Source]:
        """The bundle in this folder."""
        counts = folder.file(f"{MATRIX}.h5")
        if counts is None and MATRIX in folder.folders:
            counts = folder.location.join(MATRIX).uri
        named = {"counts": counts, "cells": folder.file(*CELLS), "experiment": folder.file(EXPERIMENT)}
        files = {role: uri for role, uri in named.items() if uri}
        if "experiment" not in files and not {"counts", "cells"} <= set(files):
            return ()
        beside, said = read_beside(folder)
        files |= beside
        if not said.get("image"):
            files |= _histology(folder)
        elif Location.parse(said["image"]).is_file():
            files["image"] = said["image"]
        if uri := _alignment(said, files, folder):
            files["alignment"] = uri
        # The settings stand in the source's metadata, so that they count as part of what the section is made from.
        ways = asdict(folder.settings.section("xenium"))
        uri, chosen = folder.location.uri, tuple(ways)
        return (Source(reader=self.name, uri=uri, files=files, metadata=ways | said, by_settings=chosen),)

    def read(self, source: Source, metadata: Mapping[str, Any]) -> Slide:
        """The section with its cells pooled, or one by one; positions in pixels of the H&E image."""
        _check_complete(source)
        experiment = _experiment(source.files.get("experiment"))
        options = {**source.metadata, **{key: value for key, value in metadata.items() if value not in (None, "")}}
        known = SlideMetadata(
            species=species_name(str(experiment.get("panel_organism") or "")) or None,
            technology="Xenium",
            expression_unit="counts",
        )
        known = with_beside(known, source).updated(dict(metadata))
        spots = choose_spots(options, known, source.files.get("metadata", source.uri))
        image = known.image or source.files.get("image")
        pixel_um = _pixel_um(experiment, source)
        to_image, file = _to_image(image, options, source)
        matrix = read_matrix(source.files["counts"])
        slide = as_slide(_cells(matrix, source.files["cells"]), spots, known)
        return replace(
            slide,
            xy_px=to_image(slide.xy_px / pixel_um),
            image=image,
            scales=(ScaleEvidence(origin="source", um_per_px=pixel_um / to_image.scale, file=file),),
            flags=(*slide.flags, *(flag for flag in matrix.genes.flags if not flag.endswith(CONTROLS))),
        )


def _check_complete(source: Source) -> None:
    wanted = {"counts": f"{MATRIX}.h5", "cells": CELLS[0]}
    check_files(source, wanted, f"both, or {MATRIX}/ with Matrix Market files and cells.csv.gz")


def _experiment(uri: str | None) -> dict[str, Any]:
    if uri is None:
        return {}
    try:
        values = json.loads(Location.parse(uri).read_bytes())
    except ValueError as error:
        raise truncated(uri, f"it is no JSON file ({error})") from error
    return values if isinstance(values, dict) else {}


def _pixel_um(experiment: Mapping[str, Any], source: Source) -> float:
    """Micrometres a pixel of the morphology image."""
    said = experiment.get("pixel_size", PIXEL_UM)
    if isinstance(said, int | float) and np.isfinite(said) and said > 0:
        return float(said)
    file = source.files["experiment"]
    raise SourceError(
        f"{file} says pixel_size = {said!r}; it must be micrometres above 0 ({PIXEL_UM} on every instrument so far).",
        rule="metadata_valid",
        file=file,
    )


def _stem(name: str) -> str | None:
    """An image's name without its ending; None where it is no TIFF."""
    return next((name[: -len(end)] for end in IMAGE_ENDINGS if name.lower().endswith(end)), None)


def _histology(folder: Listing) -> dict[str, str]:
    """The H&E of a bundle: in it, or beside it under the bundle's own name. The roles `image`, `image 2` ... where it
    is not clear which."""
    stems = {stem for name in folder.files if (stem := _stem(name)) and stem.lower().endswith(HE)}
    found = [uri for stem in sorted(stems) if (uri := folder.file(*(stem + end for end in IMAGE_ENDINGS)))]
    if not found:
        above, name = folder.location.parent(), folder.location.name.removesuffix("_outs").removesuffix("_xe")
        beside = (above.join(f"{name}_{HE}{end}") for end in IMAGE_ENDINGS)
        found = [place.uri for place in beside if place.is_file()][:1]
    return {"image" if n == 1 else f"image {n}": uri for n, uri in enumerate(found, start=1)}


def _alignment(said: Mapping[str, Any], files: Mapping[str, str], folder: Listing) -> str | None:
    """The matrix: as the metadata name it, else by the image's name beside the image, else the only one there is."""
    if said.get("alignment"):
        return None if said["alignment"] == IDENTITY else place_of(str(said["alignment"]), folder.location).uri
    if "image" in files and (uri := _alignment_of(files["image"])):
        return uri
    others = [name for name in folder.files if name.lower().endswith(f"{HE}{ALIGNMENT}")] or [EXPORTED]
    return folder.file(others[0]) if len(others) == 1 else None


def _alignment_of(image: str) -> str | None:
    place = Location.parse(image)
    stem = _stem(place.name)
    beside = place.parent().join(f"{stem}{ALIGNMENT}")
    return beside.uri if stem and beside.is_file() else None


def _to_image(image: str | None, options: Mapping[str, Any], source: Source) -> tuple[Affine, str | None]:
    """From pixels of the morphology image to those of the section's image, and the file that says so."""
    if image is None:
        return Affine.identity(), source.files.get("experiment")
    if "image 2" in source.files and image == source.files["image"]:
        several = [uri for role, uri in source.files.items() if role.startswith("image")]
        raise SourceError(
            f"{source.uri} holds {len(several)} H&E images ({', '.join(Location.parse(uri).name for uri in several)}); "
            "name one as image in the metadata.",
            rule="image_alignment",
            figure=float(len(several)),
            limit=1.0,
            file=several[0],
        )
    if options.get("alignment") == IDENTITY:
        return Affine.identity(), source.files.get("experiment")
    # The image of a metadata table is known only here; the matrix beside it is preferred to the bundle's.
    own = _alignment_of(image) if image != source.files.get("image") else None
    file = own or source.files.get("alignment")
    if file is None:
        raise SourceError(
            f"The H&E image {image} comes without its alignment to the morphology image: put the matrix that Xenium "
            f"Explorer exports beside it as {_stem(Location.parse(image).name) or 'NAME'}{ALIGNMENT}, or say alignment "
            'in section.json (a path; "identity" where its pixels are those of the morphology image).',
            rule="image_alignment",
            figure=0.0,
            limit=1.0,
            file=image,
        )
    return read_matrix_csv(file).inverse(), file


def _cells(matrix: Matrix, table: str) -> Cells:
    """Every cell of the counts with its place; NaN where the table does not name it."""
    ids, xy_um = _read_cells(table)
    return Cells(
        names=matrix.barcodes,
        xy_um_N2=locate(matrix.barcodes, ids, xy_um),
        counts_NG=matrix.counts_NG,
        symbols=matrix.genes.symbols,
        ensembl_ids=matrix.genes.ensembl_ids,
        matrix_file=matrix.file,
        positions_file=table,
    )


def _read_cells(uri: str) -> tuple[np.ndarray, np.ndarray]:
    """The cells' names (M,) and centroids (M, 2) in micrometres."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from pyarrow import csv

    wanted = ["cell_id", "x_centroid", "y_centroid"]
    filesystem, path = Location.parse(uri).filesystem()
    try:
        if uri.endswith(".parquet"):
            table = pq.read_table(path, columns=wanted, filesystem=filesystem)
        else:
            types = csv.ConvertOptions(
                include_columns=wanted, column_types={"cell_id": pa.string(), **dict.fromkeys(wanted[1:], pa.float64())}
            )
            with filesystem.open_input_stream(path) as stream:  # unpacks by the name's ending
                table = csv.read_csv(stream, convert_options=types)
    except (pa.ArrowInvalid, pa.ArrowKeyError, OSError) as error:
        raise _bad_cells(uri, " ".join(str(error).split())[:160]) from error
    if lacking := [name for name in wanted if name not in table.column_names]:
        raise _bad_cells(uri, f"it has no column {', '.join(lacking)}")
    ids = table["cell_id"].cast(pa.string()).to_numpy(zero_copy_only=False).astype(str)
    xy = (table[name].cast(pa.float64()).to_numpy(zero_copy_only=False) for name in wanted[1:])
    return ids, np.stack(list(xy), axis=1)


def _bad_cells(uri: str, what: str) -> SourceError:
    return SourceError(
        f"{uri} cannot be used: {what}. It needs cell_id, x_centroid and y_centroid; fetch it again.",
        rule="file_complete",
        figure=0.0,
        file=uri,
    )
