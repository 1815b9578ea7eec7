"""STimage-1K4M: a folder in the layout of its release, whole or in part.

    {ST,Visium,VisiumHD}/gene_exp/{slide}_count.csv    spots by genes, raw counts
    {ST,Visium,VisiumHD}/coord/{slide}_coord.csv       a row a spot: xaxis, yaxis in pixels, r, its radius in pixels
    {ST,Visium,VisiumHD}/image/{slide}.png             the full image
    meta/meta_all_gene*.csv                            slide, species, tissue, pmid, title, spot_num ...
    annotation/                                        not read

Each slide is a section and its name. The newest metadata table is used (a later one corrected a species); without it a
slide is read by what its files tell. No patients are named, and none are made up: the study is the publication. That a
study involves cancer was told from words of its abstract, so it is not taken for the slide's disease.

**Scale.** Nothing in the release says how large a pixel is. It is fitted: spots of Spatial Transcriptomics are named by
their place on the array (slide_10x13), and Visium spots lie on a lattice that their positions show. The radius is a
second statement, of 50 um on Spatial Transcriptomics arrays. That of Visium spots is either 27.5 um or half of what
Space Ranger writes as `spot_diameter_fullres`, which is no spot's size (65 um and more); so where the fitted pitch
makes it a diameter between 60 and 75 um it is no evidence. Bins of Visium HD tell their size by their names
(s_008um_...); others need `pitch_um` in the metadata.

Axes: N spots, G genes, 2 = (x, y) or (column, row).
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from histolake.ingestion.readers import Listing, Source
from histolake.ingestion.readers.arrays import ST, VISIUM, array_name, recognise, technology_name
from histolake.ingestion.readers.beside import place_of, with_beside
from histolake.ingestion.readers.count_table import read_count_table
from histolake.ingestion.readers.lattice import Lattice, fit_lattice, index_lattice
from histolake.ingestion.readers.refusals import check_columns, check_positions, not_there, truncated
from histolake.ingestion.slide import ScaleEvidence, Slide, SlideMetadata, Spot
from histolake.platform.storage import Location

__all__ = ["StimageReader"]

TECHNOLOGIES = {"ST": ST.technology, "Visium": VISIUM.technology, "VisiumHD": "Visium HD"}
IMAGES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
COUNTS = re.compile(r"(.+)_count\.csv(\.gz)?", re.I)
DRAWN_UM = (60.0, 75.0)  # diameters at which Space Ranger draws Visium spots of 55 um

_META = re.compile(r"meta_all_gene(\d*)\.csv", re.I)
_BIN = re.compile(r"s_(\d{3})um_(\d+)_(\d+)")


class StimageReader:
    """Reads the layout described above."""

    name = "stimage"
    looks_for = "gene_exp/SLIDE_count.csv with coord/SLIDE_coord.csv and image/SLIDE.png"

    def find(self, folder: Listing) -> Sequence[Source]:
        """The slides of a release: at its root, in the folder of one technology, or in a gene_exp/ folder."""
        place = folder.location
        if place.name == "gene_exp" and not folder.folders:
            place = place.parent()
        if place.name in TECHNOLOGIES and {"gene_exp", "coord"} <= set(Listing(place).folders):
            return self._slides(Listing(place), _meta(Listing(place.parent())), ())
        found = [child for name in TECHNOLOGIES if (child := folder.child(name)) and "gene_exp" in child.folders]
        if not found:
            return ()
        more = ("meta", "annotation", "example")
        owned = [folder.location.join(name).uri for name in more if name in folder.folders]
        owned += [child.location.uri for child in found]
        rows = _meta(folder)
        return [source for child in found for source in self._slides(child, rows, tuple(owned))]

    def _slides(self, folder: Listing, rows: Mapping[str, Mapping[str, str]], owned: tuple[str, ...]) -> list[Source]:
        counts = folder.child("gene_exp")
        owned = owned or tuple(folder.location.join(name).uri for name in folder.folders)
        slides = [match.group(1) for name in (counts.files if counts else ()) if (match := COUNTS.fullmatch(name))]
        return [self._source(folder, slide, rows.get(slide), owned) for slide in sorted(set(slides))]

    def _source(self, folder: Listing, slide: str, row: Mapping[str, str] | None, owned: tuple[str, ...]) -> Source:
        roles = {
            "counts": folder.file(f"gene_exp/{slide}_count.csv", f"gene_exp/{slide}_count.csv.gz"),
            "coord": folder.file(f"coord/{slide}_coord.csv", f"coord/{slide}_coord.csv.gz"),
            "image": folder.file(*(f"image/{slide}{end}" for end in IMAGES)),
        }
        files = {role: uri for role, uri in roles.items() if uri}
        said = {"section": slide, "technology": TECHNOLOGIES[folder.location.name], **_said(slide, row or {})}
        return Source(reader=self.name, uri=files["counts"], files=files, metadata=said, owns=owned)

    def read(self, source: Source, metadata: Mapping[str, Any]) -> Slide:
        """The slide; positions in pixels of its image."""
        if "coord" not in source.files:
            slide = str(source.metadata["section"])
            missing = Location.parse(source.uri).parent().parent().join("coord", f"{slide}_coord.csv").uri
            raise not_there(missing, f"{source.uri} has no positions without it")
        known = with_beside(SlideMetadata(expression_unit="counts"), source).updated(dict(metadata))
        known = replace(known, technology=technology_name(known.technology) if known.technology else None)
        coords = _read_coords(source.files["coord"])
        table = read_count_table(source.files["counts"])
        _check_complete(source, len(table.barcodes))
        index = np.array([coords.where.get(barcode, -1) for barcode in table.barcodes], dtype=np.int64)
        found = np.flatnonzero(index >= 0)
        names = _without_slide(np.array(table.barcodes, dtype=str), str(source.metadata["section"]))
        array_N2, xy_N2 = _array(names[found]), coords.xy_N2[index[found]]
        known, scales = _scale(known, names[found], array_N2, xy_N2, coords, index[found])
        order = np.arange(len(found))
        if np.isfinite(array_N2).all():
            order = np.lexsort((names[found], array_N2[:, 0], array_N2[:, 1]))
        image = place_of(known.image, Location.parse(source.uri).parent()).uri if known.image else None
        return Slide(
            metadata=known,
            barcodes=names[found][order],
            array_row=array_N2[order, 1].astype(np.float32),
            array_col=array_N2[order, 0].astype(np.float32),
            xy_px=xy_N2[order],
            counts=table.counts_NG[found[order]],
            symbols=table.symbols,
            ensembl_ids=None,
            image=image or source.files.get("image"),
            scales=scales,
            refused=tuple(
                Spot(
                    barcode=str(names[i]),
                    rule="spot_position",
                    reason="The spot has counts but no position.",
                    file=source.files["coord"],
                )
                for i in np.flatnonzero(index < 0)
            ),
            matrix_file=source.files["counts"],
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Coords:
    where: dict[str, int]  # barcode -> row
    xy_N2: np.ndarray
    radius_N: np.ndarray  # pixels; NaN where the file has none
    file: str


# -- metadata -----------------------------------------------------------------------------------------------------


def _meta(root: Listing) -> dict[str, dict[str, str]]:
    """The newest metadata table's rows by slide; empty where there is none that can be read."""
    folder = root.child("meta")
    tables = [(name, match.group(1)) for name in (folder.files if folder else ()) if (match := _META.fullmatch(name))]
    if folder is None or not tables:
        return {}
    # The date in the name is MMDDYYYY; the first table has none.
    name = max(tables, key=lambda table: table[1][4:] + table[1][:4])[0]
    words = folder.location.join(name).read_bytes().decode("utf-8-sig", errors="replace")
    csv.field_size_limit(1 << 24)  # a cell holds the abstracts of several papers
    delimiter = "\t" if "\t" in words.partition("\n")[0] else ","
    rows = csv.DictReader(io.StringIO(words), delimiter=delimiter)
    return {str(row["slide"]): row for row in rows if row.get("slide")}


def _said(slide: str, row: Mapping[str, str]) -> dict[str, str]:
    """What the table's row, and the slide's name, tell."""
    word = {key: " ".join(str(value or "").split()) for key, value in row.items() if isinstance(key, str)}
    series = re.match(r"(GSE\d+|E-MTAB-\d+)", slide)
    study = f"PMID {word['pmid']}" if word.get("pmid") else (series.group(1) if series else word.get("title", ""))
    told = {
        "species": word.get("species", ""),
        "organ": word.get("tissue", ""),
        "study": study,
        "accession": series.group(1) if series else "",
        "spot_num": word.get("spot_num", ""),
    }
    return {name: value for name, value in told.items() if value}


def _check_complete(source: Source, n_spots: int) -> None:
    told = str(source.metadata.get("spot_num", ""))
    if told.isdigit() and n_spots < int(told):
        what = f"it holds {n_spots} of the {told} spots that the metadata table tells"
        raise truncated(source.uri, what, n_spots, float(told))


# -- positions and scale ------------------------------------------------------------------------------------------


def _read_coords(uri: str) -> _Coords:
    import pandas as pd

    filesystem, path = Location.parse(uri).filesystem()
    with filesystem.open_input_stream(path, compression="gzip" if path.endswith(".gz") else None) as stream:
        try:
            table = pd.read_csv(stream, index_col=0, dtype=str)
        except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
            raise truncated(uri, f"it is no table ({' '.join(str(error).split())[:160]})") from error
    check_columns(list(table.columns), ("xaxis", "yaxis"), uri)
    numbers = table.apply(pd.to_numeric, errors="coerce").astype(np.float64)
    xy_N2 = numbers[["xaxis", "yaxis"]].to_numpy()
    check_positions(xy_N2, table.index.to_numpy(), uri)
    radius_N = numbers["r"].to_numpy() if "r" in numbers else np.full(len(numbers), np.nan)
    where = {str(name): i for i, name in enumerate(table.index)}
    return _Coords(where=where, xy_N2=xy_N2, radius_N=radius_N, file=uri)


def _without_slide(barcodes: np.ndarray, slide: str) -> np.ndarray:
    """Barcodes without the slide's name before them."""
    prefix = f"{slide}_"
    if all(str(barcode).startswith(prefix) for barcode in barcodes):
        return np.array([str(barcode).removeprefix(prefix) for barcode in barcodes], dtype=str)
    return barcodes


def _array(names: np.ndarray) -> np.ndarray:
    """Column and row by the names, NaN where they do not tell."""
    places: list[tuple[float, float] | None] = []
    for name in names:
        bins = _BIN.search(str(name))
        places.append((float(bins.group(3)), float(bins.group(2))) if bins else array_name(str(name)))
    if len(places) and all(place is not None for place in places):
        return np.array(places, dtype=np.float64)
    return np.full((len(names), 2), np.nan)


def _scale(
    known: SlideMetadata, names: np.ndarray, array_N2: np.ndarray, xy_N2: np.ndarray, coords: _Coords, rows: np.ndarray
) -> tuple[SlideMetadata, tuple[ScaleEvidence, ...]]:
    """Pitch and diameter, and what the lattice and the radius say of a pixel's size."""
    lattice = fit_lattice(array_N2, xy_N2)
    if lattice is None and (indexed_N2 := index_lattice(xy_N2)) is not None:
        lattice = fit_lattice(indexed_N2, xy_N2)
    array = recognise(known.technology, names.tolist(), lattice)
    bins = _BIN.search(str(names[0])) if len(names) else None
    bin_um = float(bins.group(1)) if bins else None
    pitch_um = known.pitch_um or (array.pitch_um if array else bin_um)
    diameter_um = array.spot_diameter_um if array else bin_um
    known = replace(known, pitch_um=pitch_um, spot_diameter_um=known.spot_diameter_um or diameter_um or pitch_um)
    found = []
    if lattice is not None and pitch_um:
        found.append(ScaleEvidence(origin="pitch", um_per_px=pitch_um / lattice.pitch_px, file=coords.file))
    radius_px = coords.radius_N[rows]
    radius_px = radius_px[np.isfinite(radius_px) & (radius_px > 0)]
    if array is not None and len(radius_px):
        told = _by_radius(known, float(np.median(radius_px)), lattice)
        found += [ScaleEvidence(origin="source", um_per_px=told, file=coords.file)] if told else []
    return known, tuple(found)


def _by_radius(known: SlideMetadata, radius_px: float, lattice: Lattice | None) -> float | None:
    """Micrometres a pixel by the spots' radius; None where it is the one at which Space Ranger draws them."""
    assert known.pitch_um is not None and known.spot_diameter_um is not None, "the array gives both"
    if known.technology == VISIUM.technology and lattice is not None:
        low, high = DRAWN_UM
        if low <= 2 * radius_px * known.pitch_um / lattice.pitch_px <= high:
            return None
    return known.spot_diameter_um / 2 / radius_px
