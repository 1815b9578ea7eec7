"""SpatialData: a zarr store with tables, shapes and images in common coordinate systems.

A table says which elements its rows annotate; each of these (a region) is a section: its rows are the spots, its shapes
their places. The spots are taken into the pixels of the image that shares a coordinate system with them. So no position
is read from the table itself, where it may be anything.

The image is the picture (three or four colours of 8 bits) that shares a coordinate system with the shapes. Of several
that cover the same ground, such as a full image and its reduced copies, the finest is used; of several that do not,
the metadata name one: `image`, as its path ("images/NAME" in section.json, the whole URI in a metadata table). Another
image, by its URI, is taken to be the one whose pixels the shapes' "global" system counts.

Where a region is a mask (labels), or there are no shapes of its name, `region` in section.json names the shapes to use
in its place (or, where there are several regions, a name for each: {"cell_labels": "cell_circles"}). section.json lies
in the store's folder.

The scale comes from a coordinate system in micrometres ("microns"), from the units of the image's axes, or from the
pitch of an array of spots. Other stores say nothing, and `um_per_px` has to be stated. Spots that lie on no lattice are
taken for cells: `CELL_UM` wide and apart; `spots` = "pooled" in section.json makes pseudo-spots of them as in
`xenium.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from histolake.ingestion.readers import Listing, Source
from histolake.ingestion.readers.alignment import Affine
from histolake.ingestion.readers.beside import read_beside, with_beside
from histolake.ingestion.readers.cells import choose_spots, locate, pooled
from histolake.ingestion.readers.h5ad_slide import Picture, as_slide, read_spots
from histolake.ingestion.readers.spatial_store import MICRONS, Element, Store, Table
from histolake.ingestion.readers.zarr_table import open_table, read_points
from histolake.ingestion.slide import ScaleEvidence, Slide, SlideMetadata
from histolake.platform.errors import SourceError
from histolake.platform.storage import Location

__all__ = ["SpatialDataReader"]

CELL_UM = 20.0  # micrometres, diameter and pitch of a cell's spot, as in xenium.py
SAME_GROUND = 0.05  # images cover the same ground when their bounds differ by at most this fraction of their size
_BIN = re.compile(r"square_0*(\d+)um")  # elements of Visium HD, named by the side of their bins
POOLED = {"keep_all": False, "lattice_um": 100.0, "spot_um": 55.0, "cell_um": CELL_UM}


class SpatialDataReader:
    """Reads the stores described above."""

    name = "spatialdata"
    looks_for = "a zarr folder with spatialdata_attrs, tables and shapes"

    def find(self, folder: Listing) -> Sequence[Source]:
        """One source for each region that a table annotates; one that tells what is missing where there is none."""
        store = Store.at(folder)
        if store is None:
            return ()
        beside, said = read_beside(folder)
        found = [(table, region) for table in store.tables.values() for region in table.regions]
        regions = [region for _, region in found]
        sources = []
        for table, region in found:
            files = {"counts": table.location.uri} | beside
            files |= _files(store, _shapes_name(said, region), said.get("image"))
            metadata = {**said, "table": table.name, "annotates": region}
            section = None
            if len(found) > 1:
                section = region if regions.count(region) == 1 else f"{table.name}-{region}"
                if said.get("section"):
                    metadata["section"] = f"{said['section']}-{section}"
            sources.append(
                Source(reader=self.name, uri=folder.location.uri, files=files, metadata=metadata, section=section)
            )
        return sources or [Source(reader=self.name, uri=folder.location.uri, files=beside, metadata=said)]

    def read(self, source: Source, metadata: Mapping[str, Any]) -> Slide:
        """The section; positions in pixels of the image, or of the shapes' coordinate system where there is none."""
        store = Store.at(Listing(Location.parse(source.uri)))
        known = with_beside(SlideMetadata(), source).updated(dict(metadata))
        table, region = _table(store, source)
        assert store is not None
        options = {**POOLED, "spots": "cells", **source.metadata, **{k: v for k, v in metadata.items() if v}}
        shapes = _shapes(store, _shapes_name(options, region), table)
        place = _place(store, shapes, known.image)
        with open_table(table, region) as rows:
            names, centres = read_points(shapes)
            spots = read_spots(rows, place.to_image(locate(rows.instances, names, centres)))
            known = _with_bins(known, region)
            if spots.lattice is None:
                known = replace(
                    known, pitch_um=known.pitch_um or CELL_UM, spot_diameter_um=known.spot_diameter_um or CELL_UM
                )
            stated = [] if place.um_per_px is None else [_source_scale(place.um_per_px, shapes)]
            slide = as_slide(rows, spots, Picture(uri=place.image, tag_um_per_px=place.tag), known, stated=stated)
        return slide if options["spots"] == "cells" else _pooled(slide, options, source, place.tag)


def _shapes_name(said: Mapping[str, Any], region: str) -> str:
    """The shapes that stand for a region: as `region` of the metadata says, one name or a name for each."""
    named = said.get("region") or region
    return str(named.get(region, region) if isinstance(named, Mapping) else named)


def _files(store: Store, region: str, named: Any) -> dict[str, str]:
    """The shapes and the image of a region, as far as it is clear which."""
    shapes = store.shapes.get(region)
    if shapes is None:
        return {}
    files = {"shapes": shapes.location.uri}
    try:
        image = _place(store, shapes, named).image
    except SourceError:
        return files  # told where the section is read
    return files | ({"image": image} if image and Location.parse(image).exists() else {})


def _table(store: Store | None, source: Source) -> tuple[Table, str]:
    table = store.tables.get(str(source.metadata.get("table"))) if store else None
    if table is None:
        held = store.held() if store else "nothing that can be read"
        raise SourceError(
            f"{source.uri} has no table that annotates shapes; it holds {held}. A section needs a table whose region "
            "is set (spatialdata.models.TableModel).",
            rule="missing_file",
            figure=0.0,
            limit=1.0,
            file=source.uri,
        )
    return table, str(source.metadata["annotates"])


def _shapes(store: Store, region: str, table: Table) -> Element:
    if region in store.shapes:
        return store.shapes[region]
    what = "a mask, which has no centres" if region in store.labels else "not among the shapes"
    raise SourceError(
        f"The table {table.name} of {store.location} annotates {region}, which is {what}; the store holds "
        f'{store.held()}. Put a section.json into the store with "region": the name of the shapes to use.',
        rule="region_known",
        figure=float(len(store.shapes)),
        limit=1.0,
        file=table.location.uri,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Place:
    """Where the shapes lie."""

    image: str | None  # URI
    to_image: Affine  # from the shapes' own coordinates to pixels
    um_per_px: float | None = None  # by a coordinate system in micrometres
    tag: float | None = None  # by the image itself


def _place(store: Store, shapes: Element, named: Any) -> _Place:
    """The image of a region, and the way to its pixels."""
    inside = f"{store.location.join('images').uri}/"
    if named and not str(named).startswith(inside):
        to_image = _to_pixels(shapes)
        return _Place(image=str(named), to_image=to_image, um_per_px=_um(shapes, to_image))
    element = _named(store, str(named)[len(inside) :]) if named else _finest(store, shapes)
    if element is None:
        to_image = _to_pixels(shapes)
        return _Place(image=None, to_image=to_image, um_per_px=_um(shapes, to_image))
    shared = element.shared(shapes)
    if not shared:
        raise SourceError(
            f"The image {element.name} of {store.location} shares no coordinate system with the shapes {shapes.name}; "
            f"it lies in {', '.join(element.maps) or 'none'}, they lie in {', '.join(shapes.maps) or 'none'}.",
            rule="image_alignment",
            figure=0.0,
            limit=1.0,
            file=element.location.uri,
        )
    to_image = shapes.maps[shared[0]].then(element.maps[shared[0]].inverse())
    in_microns = [name for name in element.maps if name.lower() in MICRONS]
    um = element.maps[in_microns[0]].scale if in_microns else _um(shapes, to_image)
    return _Place(image=element.location.uri, to_image=to_image, um_per_px=um, tag=_tag(element))


def _to_pixels(shapes: Element) -> Affine:
    """Into the coordinate system that stands for pixels where there is no image of the store."""
    names = sorted(shapes.maps, key=lambda name: (name != "global", name.lower() in MICRONS, name))
    return shapes.maps[names[0]] if names else Affine.identity()


def _um(shapes: Element, to_image: Affine) -> float | None:
    """Micrometres a pixel, where the shapes lie in a coordinate system of micrometres."""
    in_microns = [name for name in shapes.maps if name.lower() in MICRONS]
    return shapes.maps[in_microns[0]].scale / to_image.scale if in_microns else None


def _tag(element: Element) -> float | None:
    from histolake.ingestion.images import open_image

    image = open_image(element.location.uri)
    try:
        return image.um_per_px
    finally:
        image.close()


def _source_scale(um_per_px: float, shapes: Element) -> ScaleEvidence:
    return ScaleEvidence(origin="source", um_per_px=um_per_px, file=shapes.location.uri)


def _named(store: Store, name: str) -> Element:
    if name in store.images:
        return store.images[name]
    raise SourceError(
        f"{store.location} has no image {name!r}; it holds {store.held()}.",
        rule="missing_file",
        figure=1.0,
        limit=0.0,
        file=store.location.join("images", name).uri,
    )


def _finest(store: Store, shapes: Element) -> Element | None:
    """The picture over the shapes; the finest of several that cover the same ground."""
    near = [image for image in store.images.values() if image.is_picture and image.shared(shapes)]
    if not near:
        return None
    systems = set.intersection(*(set(image.shared(shapes)) for image in near))
    system = min(systems, key=lambda name: (name != "global", name), default=None)
    if system is not None and _same_ground([image.extent(system) for image in near]):
        return min(near, key=lambda image: image.maps[system].scale)
    if len(near) == 1:
        return near[0]
    raise SourceError(
        f"{store.location} has several images over {shapes.name}: {', '.join(image.name for image in near)}. Name one "
        f"as image in the metadata ({near[0].location.uri}; in the store's section.json: images/{near[0].name}).",
        rule="image_chosen",
        figure=float(len(near)),
        limit=1.0,
        file=store.location.join("images").uri,
    )


def _same_ground(extents: Sequence[np.ndarray]) -> bool:
    bounds = np.stack(extents)  # images, lowest and highest, x and y
    size = (bounds[:, 1] - bounds[:, 0]).max()
    return bool(np.ptp(bounds, axis=0).max() <= SAME_GROUND * size)


def _with_bins(known: SlideMetadata, region: str) -> SlideMetadata:
    """What the name of a Visium HD element says: its bins touch."""
    side = _BIN.search(region)
    if side is None:
        return known
    width = float(side.group(1))
    return replace(
        known,
        technology=known.technology or "Visium HD",
        pitch_um=known.pitch_um or width,
        spot_diameter_um=known.spot_diameter_um or width,
    )


def _pooled(slide: Slide, options: Mapping[str, Any], source: Source, tag: float | None) -> Slide:
    """Pseudo-spots of a slide whose spots are cells. They are laid in micrometres, so the scale must be told."""
    said = with_beside(SlideMetadata(), source).updated({k: options.get(k) for k in ("pitch_um", "spot_diameter_um")})
    spots = choose_spots(options, said, source.files.get("metadata", source.uri))
    told = [slide.metadata.um_per_px, *(e.um_per_px for e in slide.scales), tag]
    um_per_px = next((um for um in told if um), None)
    if um_per_px is None:
        raise SourceError(
            f"The cells of {source.uri} are to be pooled, and nothing tells how many micrometres a pixel is; say "
            "um_per_px in the metadata.",
            rule="scale_known",
            figure=0.0,
            limit=1.0,
            file=slide.image or slide.matrix_file,
        )
    made = pooled(replace(slide, xy_px=slide.xy_px * um_per_px), spots)
    return replace(made, xy_px=made.xy_px / um_per_px)
