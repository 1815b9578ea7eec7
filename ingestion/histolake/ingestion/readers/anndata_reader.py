"""AnnData: `.h5ad` files with `obsm["spatial"]`, each a section.

    NAME.h5ad                    positions in obsm["spatial"] (pixels of the full image), counts in layers, raw or X
    NAME.jpg|png|tif|svs ...     its image: of the file's name, or image.* where the folder holds one section
    NAME.json, section.json      optional: what is known (`beside.py`); section.json where the folder holds one section

An image that is not beside the file is taken from `uns["spatial"]`, where scanpy keeps reduced copies: the largest is
used, and the slide is flagged `image_reduced`.

The scale comes from the pitch of the array, which is known where the technology is (`arrays.py`), from `pitch_um` in
the metadata, from the fiducial marks of a Visium slide, and from `um_per_px` in `uns`. Where nothing tells it, the
section is refused by `scale_known`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from histolake.ingestion.readers import Listing, Source
from histolake.ingestion.readers.beside import FILE, place_of, read_beside, with_beside
from histolake.ingestion.readers.embedded import write_copy
from histolake.ingestion.readers.h5ad import H5ad, Library, open_h5ad
from histolake.ingestion.readers.h5ad_slide import Picture, as_slide, read_spots, the_library
from histolake.ingestion.slide import ScaleEvidence, Slide, SlideMetadata
from histolake.platform.storage import Location

__all__ = ["AnnDataReader", "embedded_picture", "picture_at"]

IMAGES = (".tif", ".tiff", ".ome.tif", ".ome.tiff", ".svs", ".ndpi", ".mrxs", ".scn", ".bif", ".jpg", ".jpeg", ".png")
# What uns["spatial"][library]["metadata"] and one-valued columns of obs say, by the catalogue's names.
SAID = {
    "organism": "species",
    "species": "species",
    "tissue": "organ",
    "organ": "organ",
    "disease": "disease",
    "technology": "technology",
    "assay": "technology",
    "chemistry_description": "technology",
    "patient": "patient",
    "donor_id": "patient",
    "study": "study",
    "licence": "licence",
    "license": "licence",
    "accession": "accession",
}
PLACEHOLDERS = ("", "unknown", "na", "n/a", "nan", "none")


class AnnDataReader:
    """Reads the files described above."""

    name = "anndata"
    looks_for = "NAME.h5ad with obsm['spatial'], and an image beside it or in it"

    def find(self, folder: Listing) -> Sequence[Source]:
        """Every .h5ad file of the folder; whether it is a section is found out when it is read."""
        names = [name for name in folder.files if name.lower().endswith(".h5ad")]
        return [self._source(folder, name, alone=len(names) == 1) for name in names]

    def _source(self, folder: Listing, name: str, *, alone: bool) -> Source:
        stem = name[: -len(".h5ad")]
        counts = folder.location.join(name).uri
        beside, metadata = read_beside(folder, f"{stem}.json")
        if alone and not beside:
            beside, metadata = read_beside(folder, FILE)
        ends = (*IMAGES, *(end.upper() for end in IMAGES))
        image = folder.file(*(stem + end for end in ends), *(f"image{end}" for end in ends if alone))
        files = {"counts": counts} | ({"image": image} if image else {}) | beside
        return Source(reader=self.name, uri=counts, files=files, metadata=metadata)

    def read(self, source: Source, metadata: Mapping[str, Any]) -> Slide:
        """The section as a slide; positions in pixels of the image that is used."""
        uri = source.files["counts"]
        with open_h5ad(uri) as file:
            library = the_library(file)
            spots = read_spots(file)
            said, um_per_px = _said(file, library)
            known = with_beside(SlideMetadata().updated(said), source).updated(dict(metadata))
            picture = _picture(file, library, source, known)
            stated = [ScaleEvidence(origin="source", um_per_px=um_per_px, file=uri)] if um_per_px else []
            return as_slide(file, spots, picture, known, stated=stated, library=library)


def _said(file: H5ad, library: Library | None) -> tuple[dict[str, str], float | None]:
    """What the file says of its section, and of the scale of a full-resolution pixel."""
    said: dict[str, str] = {}
    told: dict[str, Any] = dict(library.metadata) if library else {}
    for key in SAID:
        if key not in told and (value := file.uns(key)) is not None:
            told[key] = value
        if key not in told and (column := file.column(key)) is not None and len(set(map(str, column))) == 1:
            told[key] = column[0]
    for key, name in SAID.items():
        value = str(told.get(key, "")).strip()
        if value.lower() not in PLACEHOLDERS:
            said.setdefault(name, value)
    return said, _number(told.get("um_per_px", file.uns("um_per_px")))


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if np.isfinite(number) and number > 0 else None


def _picture(file: H5ad, library: Library | None, source: Source, known: SlideMetadata) -> Picture:
    """The image that the curator names, else the one beside the file, else the largest one in it."""
    folder = Location.parse(source.uri).parent()
    named = place_of(known.image, folder).uri if known.image else source.files.get("image")
    if named is None:
        return embedded_picture(library) if library else Picture(uri=None)
    picture = picture_at(named)
    for key in library.images if library else ():
        # A copy of an image that the file holds in reduced form is reduced as much.
        factor = library.scale_of(key) if library else None
        if factor and factor != 1.0 and library and picture.size_px == _size(library.images[key]):
            return replace(picture, factor=factor)
    return picture


def picture_at(uri: str) -> Picture:
    """The image at a URI, taken to be the one that the positions were measured on."""
    from histolake.ingestion.images import open_image

    image = open_image(uri)
    try:
        return Picture(uri=uri, size_px=image.size_px, tag_um_per_px=image.um_per_px)
    finally:
        image.close()


def embedded_picture(library: Library) -> Picture:
    """The largest image of the library whose scale is known, as a file of its own; none where there is no such."""
    scaled = {key: scale for key in library.images if (scale := library.scale_of(key))}
    if not scaled:
        return Picture(uri=None)
    best = max(scaled, key=lambda key: library.images[key].shape[0])
    pixels = library.images[best]
    return Picture(uri=str(write_copy(pixels)), size_px=_size(pixels), factor=scaled[best])


def _size(pixels: Any) -> tuple[int, int]:
    return int(pixels.shape[1]), int(pixels.shape[0])
