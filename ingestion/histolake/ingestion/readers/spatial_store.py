"""What a SpatialData store holds: its elements, and where each lies in the coordinate systems of the store.

    NAME.zarr/                    zarr group of format 2 or 3 with `spatialdata_attrs`
      images/NAME/                OME-NGFF pyramid
      shapes/NAME/shapes.parquet  circles (points with a radius) or polygons, as WKB
      labels/NAME/                masks
      tables/NAME/                AnnData, whose attributes name the `region` (elements) that its rows annotate

An element has a transformation into each coordinate system that it is known in. Only small metadata files are read
here. The format is that of the SpatialData design document and of stores that spatialdata 0.7 writes in both formats.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from histolake.ingestion.images.zarr_image import multiscale
from histolake.ingestion.readers import Listing
from histolake.ingestion.readers.alignment import Affine
from histolake.ingestion.zarr_groups import array_shape, group_attributes
from histolake.platform.storage import Location

__all__ = ["MICRONS", "Element", "Store", "Table"]

MICRONS = ("microns", "micron", "micrometers", "micrometres", "micrometer", "micrometre", "um", "µm")
ZARR = ("zarr.json", ".zgroup")


@dataclass(frozen=True, kw_only=True, eq=False)
class Element:
    """An image or a set of shapes."""

    name: str
    location: Location
    maps: Mapping[str, Affine]  # coordinate system -> from pixels (or the shapes' own coordinates) into it
    size_px: tuple[int, int] | None = None  # width and height of an image
    is_picture: bool = False  # an image of three or four colours of 8 bits

    def shared(self, other: Element) -> list[str]:
        """Coordinate systems that both lie in; "global", the usual one, first."""
        return sorted(set(self.maps) & set(other.maps), key=lambda name: (name != "global", name))

    def extent(self, system: str) -> np.ndarray:
        """An image's bounds in a coordinate system: (2, 2), lowest and highest x and y."""
        width, height = self.size_px or (0, 0)
        corners = self.maps[system](np.array([(0, 0), (width, 0), (0, height), (width, height)]))
        return np.stack([corners.min(axis=0), corners.max(axis=0)])


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table, and the elements that its rows annotate."""

    name: str
    location: Location
    regions: tuple[str, ...]
    region_key: str
    instance_key: str


class Store:
    """One store, looked into as far as it is asked."""

    def __init__(self, folder: Listing) -> None:
        self.location = folder.location
        self._folder = folder

    @classmethod
    def at(cls, folder: Listing) -> Store | None:
        """The store in a folder; None where it is none."""
        if folder.file(*ZARR) is None:
            return None
        attributes = group_attributes(folder.location) or {}
        # Stores from before 0.1 of the format do not name themselves.
        return cls(folder) if "spatialdata_attrs" in attributes or "tables" in folder.folders else None

    @cached_property
    def tables(self) -> dict[str, Table]:
        """The tables by name. One that annotates nothing has no regions."""
        found = {}
        for name, location in self._children("tables"):
            said = group_attributes(location) or {}
            region = said.get("region")
            regions = [region] if isinstance(region, str) else region if isinstance(region, list) else []
            found[name] = Table(
                name=name,
                location=location,
                regions=tuple(map(str, regions)),
                region_key=str(said.get("region_key") or "region"),
                instance_key=str(said.get("instance_key") or ""),
            )
        return found

    @cached_property
    def images(self) -> dict[str, Element]:
        """The images by name."""
        return {name: _image(name, location) for name, location in self._children("images")}

    @cached_property
    def shapes(self) -> dict[str, Element]:
        """The sets of shapes by name."""
        found = {}
        for name, location in self._children("shapes"):
            said = group_attributes(location) or {}
            found[name] = Element(
                name=name, location=location, maps=_maps(said.get("coordinateTransformations"), said.get("axes"))
            )
        return found

    @property
    def labels(self) -> list[str]:
        """Names of the masks."""
        return [name for name, _ in self._children("labels")]

    def held(self) -> str:
        """One phrase on what is there, for errors."""
        parts = {
            "tables": list(self.tables),
            "shapes": list(self.shapes),
            "images": list(self.images),
            "labels": self.labels,
        }
        return "; ".join(f"{kind} {', '.join(names)}" for kind, names in parts.items() if names) or "nothing"

    def _children(self, kind: str) -> list[tuple[str, Location]]:
        folder = self._folder.child(kind)
        return [(name, folder.location.join(name)) for name in folder.folders] if folder else []


def _image(name: str, location: Location) -> Element:
    pyramid = multiscale(group_attributes(location)) or {}
    axes = [str(axis.get("name")) if isinstance(axis, dict) else str(axis) for axis in pyramid.get("axes", ())]
    level = location.join(str(pyramid["datasets"][0].get("path"))) if pyramid else None
    shape, dtype = (array_shape(level) if level else None) or ((), "")
    known = len(shape) == len(axes) and {"x", "y"} <= set(axes)
    colours = shape[axes.index("c")] if known and "c" in axes else 1
    return Element(
        name=name,
        location=location,
        maps=_maps(pyramid.get("coordinateTransformations"), axes),
        size_px=(shape[axes.index("x")], shape[axes.index("y")]) if known else None,
        is_picture=known and colours in (3, 4) and dtype == "uint8",
    )


def _maps(transformations: Any, axes: Any) -> dict[str, Affine]:
    """Coordinate system -> map of (x, y). What is no affine map in the plane is left out."""
    found = {}
    for one in transformations if isinstance(transformations, list) else ():
        output = one.get("output") if isinstance(one, dict) else None
        system = output.get("name") if isinstance(output, dict) else None
        try:
            matrix = _matrix(one, [str(axis) for axis in axes or ()])
        except (KeyError, ValueError, TypeError, IndexError):
            continue
        if system is not None and matrix is not None and abs(np.linalg.det(matrix)) > 0:
            found[str(system)] = Affine(matrix)
    return found


def _matrix(one: Mapping[str, Any], axes: Sequence[str]) -> np.ndarray | None:
    """(3, 3) of a transformation restricted to x and y; None for a kind that is not affine."""
    inputs = _axes(one.get("input")) or list(axes)
    outputs = _axes(one.get("output")) or inputs
    matrix = np.eye(3)
    kind = one["type"]
    if kind == "sequence":
        for step in one["transformations"]:
            inner = _matrix(step, inputs)
            if inner is None:
                return None
            matrix = inner @ matrix
        return matrix
    if kind == "scale":
        return np.diag([*(float(one["scale"][inputs.index(name)]) for name in "xy"), 1.0])
    if kind == "translation":
        matrix[:2, 2] = [one["translation"][inputs.index(name)] for name in "xy"]
    elif kind == "affine":
        full = np.array(one["affine"], dtype=np.float64)
        for i, out in enumerate("xy"):
            row = full[outputs.index(out)]
            matrix[i] = [row[inputs.index("x")], row[inputs.index("y")], row[-1]]
    elif kind == "mapAxis":
        for i, out in enumerate("xy"):
            matrix[i] = [float(one["mapAxis"].get(out, out) == name) for name in "xy"] + [0.0]
    elif kind != "identity":
        return None
    return matrix


def _axes(side: Any) -> list[str]:
    axes = side.get("axes") if isinstance(side, dict) else None
    return [str(axis["name"]) for axis in axes] if axes else []
