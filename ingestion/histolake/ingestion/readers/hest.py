"""HEST-1k: a folder in the layout of its release, whole or in part.

    st/{id}.h5ad               counts and positions, in pixels of the full image; a reduced copy of the image
    wsis/{id}.tif              the full image
    metadata/{id}.json         what is known of the sample
    HEST_v1_1_0.csv            the same of all samples, where it lies at the root
    patches/ tissue_seg/ patches_vis/ spatial_plots/ thumbnails/ cellvit_seg/ transcripts/ xenium_seg/ ...   not read

Each id is a section and its name. Without its full image a section is read with the reduced copy (`image_reduced`), and
without any metadata by what its file tells.

**What the metadata become.** A blank patient (949 of the 1,229 samples of version 1.1.0) stays unknown. The study is
the publication's address where there is one, since six publications are listed under two titles each; else the title.
`inter_spot_dist` and `spot_diameter` are the pitch and the diameter; where the pitch is the smaller of the two they are
taken to be exchanged (the twelve sections of squamous carcinoma: 150 um between spots of 110 um). Xenium and Visium HD
samples are pooled into squares, of 100 um and of 128 um: these are their pitch and diameter, whatever the catalogue
says of the bins.

**Scale.** The catalogue states two pixel sizes: the estimated one, and the one embedded in the publisher's image. In
199 of the 357 samples with both they are more than 5% apart, mostly since the embedded one is none: 1, a printing
resolution of 72, 96 or 300 dots an inch read as if it were micrometres, or a value that no microscope has. Such a one
is no evidence; the slide is flagged `pixel_size_placeholder` (220 samples). The others stand as evidence (origin
`source`, the estimated one first) beside the pitch that is fitted here, and a slide on which they disagree (18 by the
catalogue alone) is refused until a person says `scale_from`.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from histolake.ingestion.readers import Listing, Source
from histolake.ingestion.readers.anndata_reader import embedded_picture, picture_at
from histolake.ingestion.readers.arrays import technology_name
from histolake.ingestion.readers.beside import place_of, with_beside
from histolake.ingestion.readers.h5ad import Library, open_h5ad
from histolake.ingestion.readers.h5ad_slide import Picture, as_slide, read_spots, the_library
from histolake.ingestion.readers.refusals import not_there
from histolake.ingestion.slide import ScaleEvidence, Slide, SlideMetadata
from histolake.platform.errors import SourceError
from histolake.platform.storage import Location

__all__ = ["HestReader", "HestSample", "hest_sample"]

# Folders of a release beside st/; with one of them, or the catalogue, a folder is known.
BESIDE = (
    *("wsis", "metadata", "patches", "tissue_seg", "patches_vis", "spatial_plots", "thumbnails", "cellvit_seg"),
    *("transcripts", "xenium_seg", "pixel_size_vis", "downscaled"),
)
IMAGES = (".tif", ".tiff", ".ome.tif", ".ome.tiff")
PLACEHOLDER = "pixel_size_placeholder"
POOLED_UM = {"Xenium": 100.0, "Visium HD": 128.0}  # sides of the squares that measurements were pooled into
PLAUSIBLE_UM = (0.05, 20.0)  # micrometres a pixel of an image that may be meant
# 1, and 25.4 by the dots an inch that image programs write where they know nothing.
NOT_MEANT_UM = (1.0, 25.4 / 72, 25.4 / 96, 25.4 / 300)

_CATALOGUE = re.compile(r"HEST_v\d+(_\d+)*\.csv", re.I)
_ACCESSION = re.compile(
    r"\b(GSE\d+|GSM\d+|E-MTAB-\d+|EGA[SD]\d+|PRJ[A-Z]{2}\d+|SCP\d+|HRA\d+|phs\d+|10\.\d{4,9}/[^\s?#&]+)", re.I
)
_PREPRINT = re.compile(r"v\d+(\.full\S*)?$")  # the version in a preprint's address


class HestReader:
    """Reads the layout described above."""

    name = "hest"
    looks_for = "st/ID.h5ad with wsis/ID.tif and metadata/ID.json"

    def find(self, folder: Listing) -> Sequence[Source]:
        """The samples of a release, at its root or in its st/ folder."""
        root = Listing(folder.location.parent()) if folder.location.name == "st" and not folder.folders else folder
        counts, catalogue = root.child("st"), _catalogue_of(root)
        beside = [name for name in BESIDE if name in root.folders]
        if counts is None or not (beside or catalogue):
            return ()
        files = {name[: -len(".h5ad")]: name for name in counts.files if name.lower().endswith(".h5ad")}
        rows = _rows(catalogue) if catalogue and files else {}
        owned = tuple(root.location.join(name).uri for name in ("st", *beside))
        return [
            self._source(root, section, rows.get(section), owned) for section in sorted({*files, *_only_images(root)})
        ]

    def _source(self, root: Listing, section: str, row: Mapping[str, str] | None, owned: tuple[str, ...]) -> Source:
        roles = {
            "counts": root.file(f"st/{section}.h5ad"),
            "image": root.file(*(f"wsis/{section}{end}" for end in IMAGES)),
            "metadata": root.file(f"metadata/{section}.json"),
        }
        files = {role: uri for role, uri in roles.items() if uri}
        said: dict[str, Any] = {"section": section} | ({"catalogue": dict(row)} if row else {})
        uri = files.get("counts", root.location.join("st", f"{section}.h5ad").uri)
        return Source(reader=self.name, uri=uri, files=files, metadata=said, owns=owned)

    def read(self, source: Source, metadata: Mapping[str, Any]) -> Slide:
        """The sample as a slide; positions in pixels of the image that is used."""
        if "counts" not in source.files:
            raise not_there(source.uri, "only its image is: download the sample's st/ file too")
        sample = hest_sample({**source.metadata.get("catalogue", {}), **_json(source)})
        with open_h5ad(source.files["counts"]) as file:
            library = the_library(file)
            spots = read_spots(file)
            known = with_beside(sample.metadata, source).updated(dict(metadata))
            picture = _picture(source, known, library, sample)
            where = source.files.get("metadata")
            stated = [ScaleEvidence(origin="source", um_per_px=um, file=where) for um in sample.um_per_px]
            slide = as_slide(file, spots, picture, known, stated=stated, library=library)
        return replace(slide, flags=slide.flags + ((PLACEHOLDER,) if sample.placeholder else ()))


@dataclass(frozen=True, kw_only=True)
class HestSample:
    """A row of the catalogue as the lake takes it."""

    metadata: SlideMetadata
    um_per_px: tuple[float, ...]  # micrometres a full-resolution pixel: estimated, then embedded, where they are meant
    placeholder: bool  # whether the embedded pixel size is none
    size_px: tuple[float, float] | None  # width and height of the full image


def hest_sample(row: Mapping[str, Any]) -> HestSample:
    """What the catalogue's columns, or the keys of metadata/ID.json, say. Blanks stay unknown."""
    word = {key: _text(value) for key, value in row.items()}
    technology = technology_name(named) if (named := word.get("st_technology")) else None
    pitch_um, diameter_um = _number(row.get("inter_spot_dist")), _number(row.get("spot_diameter"))
    if pitch_um and diameter_um and pitch_um < diameter_um:
        pitch_um, diameter_um = diameter_um, pitch_um
    if technology in POOLED_UM:
        pitch_um = diameter_um = POOLED_UM[technology]
    estimated, embedded = (_number(row.get(f"pixel_size_um_{kind}")) for kind in ("estimated", "embedded"))
    meant = [um for um in (estimated, embedded) if um is not None and _meant(um)]
    width, height = _number(row.get("fullres_px_width")), _number(row.get("fullres_px_height"))
    known = {
        "organ": (word.get("organ") or "").lower(),
        "species": word.get("species"),
        "disease": _disease(word),
        "patient": word.get("patient"),
        "technology": technology,
        "licence": word.get("license"),
        "study": _address(word.get("study_link")) or word.get("dataset_title"),
        "accession": _accession(word),
        "expression_unit": None,
        "pitch_um": pitch_um,
        "spot_diameter_um": diameter_um,
    }
    return HestSample(
        metadata=SlideMetadata().updated(known),
        um_per_px=tuple(meant),
        placeholder=embedded is not None and embedded not in meant,
        size_px=(width, height) if width and height else None,
    )


# -- finding ------------------------------------------------------------------------------------------------------


def _catalogue_of(root: Listing) -> str | None:
    """URI of the newest catalogue at the root."""

    def version(name: str) -> list[int]:
        return [int(number) for number in re.findall(r"\d+", name)]

    names = sorted((name for name in root.files if _CATALOGUE.fullmatch(name)), key=version)
    return root.file(names[-1]) if names else None


def _rows(catalogue: str) -> dict[str, dict[str, str]]:
    """The catalogue's rows by id. A file that is no such table tells nothing: samples have their own metadata."""
    words = Location.parse(catalogue).read_bytes().decode("utf-8-sig", errors="replace")
    return {row["id"].strip(): row for row in csv.DictReader(io.StringIO(words)) if row.get("id")}


def _only_images(root: Listing) -> set[str]:
    images = root.child("wsis")
    return {name.split(".")[0] for name in images.files if name.lower().endswith(IMAGES)} if images else set()


# -- reading ------------------------------------------------------------------------------------------------------


def _json(source: Source) -> dict[str, Any]:
    uri = source.files.get("metadata")
    if uri is None:
        return {}
    try:
        values = json.loads(Location.parse(uri).read_bytes())
    except ValueError as error:
        raise SourceError(f"{uri} is no JSON: {error}.", rule="metadata_valid", file=uri) from error
    return {k: v for k, v in values.items() if _text(v) is not None} if isinstance(values, dict) else {}


def _picture(source: Source, known: SlideMetadata, library: Library | None, sample: HestSample) -> Picture:
    """The image that the curator names, else the full one, else the reduced copy in the h5ad file."""
    named = place_of(known.image, Location.parse(source.uri).parent()).uri if known.image else source.files.get("image")
    if named is None:
        return embedded_picture(library) if library else Picture(uri=None)
    picture = picture_at(named)
    if sample.size_px is None or picture.size_px is None:
        return picture
    across, down = np.array(picture.size_px) / np.array(sample.size_px)
    # An image smaller than the catalogue's, by one factor in both directions, is a reduced copy.
    reduced = across < 0.95 and abs(across / down - 1) < 0.01
    return replace(picture, factor=float((across + down) / 2)) if reduced else picture


def _text(value: Any) -> str | None:
    words = " ".join(str("" if value is None else value).split())
    return None if words.lower() in ("", "nan", "none", "null") else words


def _number(value: Any) -> float | None:
    try:
        number = float(str(value).strip())
    except ValueError:
        return None
    return number if np.isfinite(number) and number > 0 else None


def _meant(um_per_px: float) -> bool:
    low, high = PLAUSIBLE_UM
    return low <= um_per_px <= high and not any(abs(um_per_px / other - 1) < 1e-4 for other in NOT_MEANT_UM)


def _disease(word: Mapping[str, str | None]) -> str | None:
    state, detail = word.get("disease_state"), word.get("disease_comment") or word.get("oncotree_code")
    if state is None or detail is None or state == "Healthy":
        return state or detail
    return f"{state}: {detail}"


def _accession(word: Mapping[str, str | None]) -> str | None:
    """An accession number or DOI in one of the links, else the first link there is."""
    links = [link for key in ("download_page_link1", "study_link") if "://" in (link := word.get(key) or "")]
    found = (match.group(1) for link in links if (match := _ACCESSION.search(_PREPRINT.sub("", link))))
    return next(found, _address(links[0]) if links else None)


def _address(link: str | None) -> str | None:
    """A publication's address without what differs from visitor to visitor; None of what is no address."""
    return re.split(r"[?#]", link)[0].rstrip("/") if link and "://" in link else None
