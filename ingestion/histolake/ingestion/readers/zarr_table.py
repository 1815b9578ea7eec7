"""The rows of one region in a table of a SpatialData store, as AnnData has them in zarr; and shapes as points.

Nothing is loaded before it is asked for: the columns of `obs` and `var` when the table is opened, a matrix when it is
read. A matrix is read whole and then cut to the region's rows.

Axes: N rows of the region, R rows of the table, G variables, M shapes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from histolake.ingestion.readers.spatial_store import Element, Table
from histolake.ingestion.zarr_groups import DAMAGE, open_group
from histolake.platform.errors import SourceError
from histolake.platform.storage import Location

__all__ = ["ZarrTable", "open_table", "read_points"]

SAMPLE_VALUES = 100_000  # values of a matrix that are looked at to see whether it holds whole numbers
SHAPES = "shapes.parquet"


class ZarrTable:
    """An open table, cut to one region. `uri` names it in errors."""

    def __init__(self, group: Any, table: Table, region: str) -> None:
        from anndata.io import read_elem

        self._group = group
        self.uri = table.location.uri
        obs = read_elem(group["obs"])
        if table.region_key in obs.columns:
            self._rows = np.flatnonzero(obs[table.region_key].astype(str).to_numpy() == region)
        else:
            self._rows = np.arange(len(obs))
        self._obs = obs.iloc[self._rows]
        # A table may name its instances by the index.
        named = table.instance_key in self._obs.columns
        self.instances = self._obs[table.instance_key].astype(str).to_numpy(dtype=str) if named else self.names

    @property
    def names(self) -> np.ndarray:
        """Names of the observations (N,)."""
        return np.array([str(name) for name in self._obs.index], dtype=str)

    def obsm(self, *keys: str) -> np.ndarray | None:
        """The first of these that is there, as float64 (N, dimensions)."""
        from anndata.io import read_elem

        hit = next((key for key in keys if f"obsm/{key}" in self._group), None)
        return None if hit is None else np.asarray(read_elem(self._group[f"obsm/{hit}"]), np.float64)[self._rows]

    def column(self, *names: str) -> np.ndarray | None:
        """The first of these columns of `obs` that is there (N,)."""
        hit = next((name for name in names if name in self._obs.columns), None)
        return None if hit is None else self._obs[hit].to_numpy()

    def matrices(self) -> Iterator[_ZarrMatrix]:
        """The layer `counts` where there is one, then X."""
        from anndata.io import read_elem

        var = read_elem(self._group["var"])
        for name in ("layers/counts", "X"):
            if name in self._group:
                yield _ZarrMatrix(name=name, var=var, node=self._group[name], rows=self._rows)


@dataclass(frozen=True, kw_only=True, eq=False)
class _ZarrMatrix:
    name: str
    var: Any  # pandas.DataFrame (G, ...)
    node: Any  # zarr group (sparse) or array (dense)
    rows: np.ndarray  # (N,) of R

    def whole(self) -> bool:
        """Whether a sample from its beginning holds whole numbers only, and any at all."""
        values = self.node["data"] if hasattr(self.node, "keys") else self.node
        if not values.shape[0]:
            return False
        per_row = int(np.prod(values.shape[1:], dtype=np.int64)) or 1
        some = np.asarray(values[: max(1, SAMPLE_VALUES // per_row)])
        return some.dtype.kind in "iub" or bool(np.isfinite(some).all() and (some == np.rint(some)).all())

    def read(self) -> Any:
        """The region's rows as `scipy.sparse.csr_array` (N, G) float32, without stored zeros."""
        from anndata.io import read_elem
        from scipy.sparse import csr_array

        counts = csr_array(read_elem(self.node), dtype=np.float32)
        if len(self.rows) != counts.shape[0]:
            counts = counts[self.rows]
        counts.eliminate_zeros()
        counts.sort_indices()
        return counts


@contextmanager
def open_table(table: Table, region: str) -> Iterator[ZarrTable]:
    """Open a table; what is damaged or missing in it becomes a `SourceError` (`file_complete`)."""
    from anndata._io.specs.registry import IORegistryError  # what read_elem raises; it has no public name

    try:
        yield ZarrTable(open_group(table.location), table, region)
    except (*DAMAGE, IORegistryError) as error:
        raise _damaged(table.location, error) from error


def read_points(shapes: Element) -> tuple[np.ndarray, np.ndarray]:
    """Names (M,) and centres (M, 2) of shapes, in their own coordinates: of a circle its centre, of a polygon its
    centroid."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    import shapely

    file = shapes.location.join(SHAPES)
    filesystem, path = file.filesystem()
    if not file.is_file():
        raise SourceError(
            f"{shapes.location} holds no {SHAPES}; the way in which the first versions of SpatialData kept shapes is "
            "not read. Write the store again with a current version of spatialdata.",
            rule="missing_file",
            figure=1.0,
            limit=0.0,
            file=file.uri,
        )
    try:
        stored = pq.ParquetFile(filesystem.open_input_file(path))
        index = [name for name in _index(stored) if name in stored.schema_arrow.names]
        table = stored.read(columns=["geometry", *index[:1]])
        geometry = shapely.from_wkb(table["geometry"].to_numpy(zero_copy_only=False))
    except (pa.ArrowInvalid, pa.ArrowKeyError, OSError, shapely.errors.GEOSException) as error:
        raise _damaged(file, error) from error
    centres = shapely.get_coordinates(shapely.centroid(geometry))
    if len(centres) != table.num_rows:
        raise _damaged(file, ValueError("a shape is empty"))
    ids = table[index[0]].cast(pa.string()).to_numpy(zero_copy_only=False) if index else np.arange(table.num_rows)
    return ids.astype(str), centres[:, :2]


def _index(stored: Any) -> list[str]:
    """The column in which pandas keeps the names; none where they are the rows' numbers."""
    said = stored.schema_arrow.pandas_metadata or {}
    return [name for name in said.get("index_columns", ()) if isinstance(name, str)]


def _damaged(location: Location, error: Exception) -> SourceError:
    said = " ".join(str(error).split())[:160]
    return SourceError(
        f"{location} is incomplete or damaged ({type(error).__name__}: {said}). Fetch the store again.",
        rule="file_complete",
        figure=0.0,
        file=location.uri,
    )
