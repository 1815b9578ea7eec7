"""SpatialData stores, written to the format's design document with zarr, anndata and pyarrow, at any size.

`data/spatialdata-2.tar.xz` and `-3.tar.xz` are stores that spatialdata itself wrote; these here are for what those
cannot be: large, damaged, or ambiguous.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import shapely
import zarr
from anndata.io import write_elem
from scipy.sparse import csr_matrix

DATA = Path(__file__).parent / "data"


def unpack_spatialdata(folder: Path, zarr_format: int) -> tuple[Path, dict[str, dict[str, list[float]]]]:
    """A store that spatialdata wrote, and where its spots have to lie: shapes -> name of the row -> x and y."""
    folder.mkdir(parents=True)
    with tarfile.open(DATA / f"spatialdata-{zarr_format}.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder / "store.zarr", json.loads((folder / "expected.json").read_text())


def write_spatialdata(
    path: Path,
    *,
    zarr_format: int = 3,
    seed: int = 0,
    columns: int = 12,
    rows: int = 10,
    genes: int = 260,
    pitch_px: float = 40.0,
    image: bool = True,
    section: Mapping[str, Any] | None = None,
) -> Path:
    """A Visium capture area: spots on the hexagonal array, H&E of the same frame, its pyramid of three levels."""
    rng = np.random.default_rng(seed)
    row, column = np.divmod(np.arange(columns * rows), columns)
    column = 2 * column + row % 2
    xy = np.stack([(column + 2) * pitch_px / 2, (row + 1) * pitch_px * np.sqrt(3) / 2], axis=1)
    barcodes = [f"{''.join(rng.choice(list('ACGT'), 16))}-1" for _ in row]
    obs = {"array_row": row, "array_col": column, "in_tissue": np.ones(len(row), int)}
    counts = csr_matrix(rng.poisson(3, (len(row), genes)).astype(np.float32))
    root = zarr.open_group(path, mode="w", zarr_format=zarr_format)
    root.attrs["spatialdata_attrs"] = {"version": "0.2" if zarr_format == 3 else "0.1"}
    for kind in ("images", "shapes", "tables", "labels", "points"):
        root.create_group(kind)
    write_table(root, "table", ["capture"], barcodes, list(range(len(row))), counts, obs=obs)
    write_shapes(root, "capture", xy, list(range(len(row))), {"global": [1.0, 1.0]}, radius=0.3 * pitch_px)
    if image:
        side = (int((columns + 2) * pitch_px), int((rows + 2) * pitch_px * 0.87))
        write_image(root, "he", tissue(side, seed), {"global": [1.0, 1.0]}, levels=3)
    if section is not None:
        (path / "section.json").write_text(json.dumps(section))
    return path


def tissue(size: tuple[int, int], seed: int) -> np.ndarray:
    """(c, y, x): coloured squares of 8 pixels."""
    rng = np.random.default_rng(seed)
    small = rng.integers(60, 230, (3, size[1] // 8 + 1, size[0] // 8 + 1), dtype=np.uint8)
    return small.repeat(8, axis=1).repeat(8, axis=2)[:, : size[1], : size[0]]


def write_table(
    root: Any,
    name: str,
    regions: Sequence[str],
    names: Sequence[str],
    instances: Sequence[Any],
    counts: Any,
    *,
    obs: Mapping[str, Any] | None = None,
    region_of: Sequence[str] | None = None,
) -> None:
    """A table that annotates elements; `region_of` its rows' elements, where there are several."""
    said = {"region": pd.Categorical(region_of or [regions[0]] * len(names)), "instance": list(instances)}
    table = anndata.AnnData(
        counts,
        obs=pd.DataFrame({**said, **(obs or {})}, index=list(names)),
        var=pd.DataFrame(
            {"gene_ids": [f"ENSG{g:011d}" for g in range(counts.shape[1])]},
            index=[f"GENE{g:03d}" for g in range(counts.shape[1])],
        ),
    )
    write_elem(root["tables"], name, table)
    root[f"tables/{name}"].attrs.update(
        {
            "spatialdata-encoding-type": "ngff:regions_table",
            "region": regions[0] if len(regions) == 1 else list(regions),
            "region_key": "region",
            "instance_key": "instance",
            "version": "0.2",
        }
    )


def write_shapes(
    root: Any,
    name: str,
    xy: np.ndarray,
    names: Sequence[Any],
    scales: Mapping[str, Sequence[float]],
    *,
    radius: float | None = None,
) -> None:
    """Circles, or squares of 4 units where no radius is given. `scales`: coordinate system -> factors of x and y."""
    group = root["shapes"].create_group(name)
    group.attrs.update(
        {
            "encoding-type": "ngff:shapes",
            "axes": ["x", "y"],
            "coordinateTransformations": [_scaling(factors, system, "xy") for system, factors in scales.items()],
            "spatialdata_attrs": {"version": "0.3"},
        }
    )
    points = shapely.points(xy) if radius is not None else shapely.box(*(xy - 2).T, *(xy + 2).T)
    table = pa.table({"geometry": pa.array(shapely.to_wkb(points).tolist(), pa.binary()), "__index_level_0__": names})
    if radius is not None:
        table = table.append_column("radius", pa.array([radius] * len(xy)))
    table = table.replace_schema_metadata({"pandas": json.dumps({"index_columns": ["__index_level_0__"]})})
    pq.write_table(table, Path(root.store.root) / "shapes" / name / "shapes.parquet")


def write_image(
    root: Any,
    name: str,
    pixels: np.ndarray,
    scales: Mapping[str, Sequence[float]],
    *,
    levels: int = 1,
    chunk_px: int = 128,
    unit: str | None = None,
    pixel: float = 1.0,
) -> None:
    """An OME-NGFF image (c, y, x) with a pyramid of halves. With `unit`, a pixel is `pixel` of it."""
    group = root["images"].create_group(name)
    datasets = []
    for level in range(levels):
        made = pixels[:, :: 2**level, :: 2**level]
        chunks = (made.shape[0], chunk_px, chunk_px)
        array = group.create_array(f"s{level}", shape=made.shape, dtype=made.dtype, chunks=chunks)
        array[:] = made
        scale = [1.0, pixel * 2**level, pixel * 2**level]
        datasets.append({"path": f"s{level}", "coordinateTransformations": [{"type": "scale", "scale": scale}]})
    place = {"unit": unit} if unit else {}
    pyramid = {
        "name": name,
        "axes": [{"name": "c", "type": "channel"}, *({"name": axis, "type": "space", **place} for axis in "yx")],
        "datasets": datasets,
        "coordinateTransformations": [_scaling(factors, system, "cyx") for system, factors in scales.items()],
    }
    if root.metadata.zarr_format == 3:
        group.attrs.update({"ome": {"version": "0.5", "multiscales": [pyramid]}})
    else:
        group.attrs.update({"multiscales": [{**pyramid, "version": "0.4"}]})


def _scaling(factors: Sequence[float], system: str, axes: str) -> dict[str, Any]:
    named = [{"name": axis, "type": "channel" if axis == "c" else "space"} for axis in axes]
    by_axis = {"c": 1.0, "x": factors[0], "y": factors[1]}
    return {
        "type": "scale",
        "scale": [by_axis[axis] for axis in axes],
        "input": {"name": axes, "axes": named},
        "output": {"name": system, "axes": named},
    }
