"""An `.h5ad` file, opened without loading it: tables, positions, images and the matrix are read when asked for.

Tables go through anndata, which knows the encodings of its versions; files from before 0.7, which keep a table as one
record array, are read here. The matrix is read once, as sparse: a dense one in blocks of rows.

Axes: N observations, G variables.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from histolake.ingestion.readers.refusals import not_there, truncated
from histolake.platform.errors import SourceError
from histolake.platform.storage import Location

__all__ = ["H5ad", "Library", "Matrix", "open_h5ad", "text"]

BLOCK_VALUES = 4_000_000  # values of a dense matrix that are held at a time
OURS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS)  # failures of this machine, not of the file
SAMPLE_VALUES = 100_000  # values of a matrix that are looked at to see whether it holds whole numbers


@dataclass(frozen=True, kw_only=True, eq=False)
class Library:
    """What `uns["spatial"]` says of one capture area, in scanpy's layout."""

    name: str
    images: Mapping[str, Any]  # key -> dataset (H, W, colours)
    scalefactors: Mapping[str, float]
    metadata: Mapping[str, str]

    def scale_of(self, image: str) -> float | None:
        """Pixels of an image per pixel of the positions."""
        if image == "fullres":
            return self.scalefactors.get("tissue_fullres_scalef", 1.0)
        return self.scalefactors.get(f"tissue_{image}_scalef")


@dataclass(frozen=True, kw_only=True, eq=False)
class Matrix:
    """One of the file's matrices, with its variables; nothing of it is read yet."""

    name: str  # "X", "raw", "layers/counts"
    node: Any  # h5py group (sparse) or dataset (dense)
    var: Any  # pandas.DataFrame (G, ...)

    def whole(self) -> bool:
        """Whether a sample from its beginning, middle and end holds whole numbers only, and any at all."""
        values = self.node["data"] if _is_group(self.node) else self.node
        if not values.shape[0]:
            return False
        per_row = int(np.prod(values.shape[1:], dtype=np.int64)) or 1
        rows = max(1, SAMPLE_VALUES // per_row)
        starts = sorted({0, max(0, values.shape[0] // 2), max(0, values.shape[0] - rows)})
        return all(_whole(values[start : start + rows]) for start in starts)

    def read(self) -> Any:
        """The matrix as a `scipy.sparse.csr_array` (N, G), float32, without stored zeros."""
        counts = _read_sparse(self.node) if _is_group(self.node) else _read_dense(self.node)
        counts.eliminate_zeros()
        counts.sort_indices()
        return counts


class H5ad:
    """An open file. `uri` names it in errors."""

    def __init__(self, file: Any, uri: str) -> None:
        self._file = file
        self.uri = uri
        self.obs = self._table("obs")

    @property
    def names(self) -> np.ndarray:
        """Names of the observations (N,)."""
        return np.array([text(name) for name in self.obs.index], dtype=str)

    def obsm(self, *keys: str) -> np.ndarray | None:
        """The first of these that is there, as float64 (N, dimensions)."""
        from anndata.io import read_elem

        group = self._file.get("obsm")
        if group is None:
            return None
        if not _is_group(group):  # before 0.7: a record array
            hit = next((key for key in keys if key in (group.dtype.names or ())), None)
            return None if hit is None else np.asarray(group[hit], dtype=np.float64)
        hit = next((key for key in keys if key in group), None)
        return None if hit is None else np.asarray(read_elem(group[hit]), dtype=np.float64)

    def column(self, *names: str) -> np.ndarray | None:
        """The first of these columns of `obs` that is there (N,)."""
        hit = next((name for name in names if name in self.obs.columns), None)
        return None if hit is None else self.obs[hit].to_numpy()

    def uns(self, key: str) -> Any:
        """An entry of `uns`: text, a number, or None where it is not there or is something else."""
        node = self._file.get(f"uns/{key}")
        if node is None or _is_group(node) or node.size != 1:
            return None
        value = np.asarray(node[()]).reshape(-1)[0]
        return text(value) if isinstance(value, str | bytes | np.bytes_) else value

    def libraries(self) -> list[Library]:
        """The capture areas in `uns["spatial"]`."""
        spatial = self._file.get("uns/spatial")
        if spatial is None or not _is_group(spatial):
            return []
        return [self._library(name, spatial[name]) for name in spatial if _is_group(spatial[name])]

    def _library(self, name: str, group: Any) -> Library:
        images = group.get("images", {})
        factors = group.get("scalefactors", {})
        said = group.get("metadata", {})
        return Library(
            name=name,
            images={key: images[key] for key in images if not _is_group(images[key]) and images[key].ndim in (2, 3)},
            scalefactors={key: float(factors[key][()]) for key in factors if _is_number(factors[key])},
            metadata={key: text(said[key][()]) for key in said if not _is_group(said[key]) and said[key].shape == ()},
        )

    def matrices(self) -> Iterator[Matrix]:
        """The matrices that may hold counts, the likeliest first."""
        layers = self._file.get("layers", {})
        for key in ("counts", "raw_counts", "raw", "count"):
            if key in layers:
                yield Matrix(name=f"layers/{key}", node=layers[key], var=self._table("var"))
        if "raw.X" in self._file:
            yield Matrix(name="raw", node=self._file["raw.X"], var=self._table("raw.var"))
        elif "raw" in self._file and "X" in self._file["raw"]:
            yield Matrix(name="raw", node=self._file["raw/X"], var=self._table("raw/var"))
        if "X" in self._file:
            yield Matrix(name="X", node=self._file["X"], var=self._table("var"))

    def _table(self, key: str) -> Any:
        from anndata.io import read_elem

        node = self._file.get(key)
        if node is None:
            raise SourceError(
                f"{self.uri} has no {key}; it is not an AnnData file, or an incomplete one.",
                rule="format_known",
                file=self.uri,
            )
        return read_elem(node) if _is_group(node) else _record_table(node)


@contextmanager
def open_h5ad(uri: str) -> Iterator[H5ad]:
    """Open a file, and turn what is damaged or unknown in it into a `SourceError` of one sentence.

    Rules: `missing_file`, `file_complete` (truncated or damaged), `format_known` (not AnnData, or of a version that
    the installed anndata does not read).
    """
    import h5py
    from anndata._io.specs.registry import IORegistryError  # what read_elem raises; it has no public name

    path = Location.parse(uri).local_path()
    if not path.is_file():
        raise not_there(uri)
    try:
        with h5py.File(path, "r") as file:
            yield H5ad(file, uri)
    except (OSError, RuntimeError) as error:
        if getattr(error, "errno", None) in OURS:
            raise
        raise truncated(uri, _said(error), path.stat().st_size) from error
    except (IORegistryError, KeyError) as error:
        raise SourceError(
            f"{uri} is written in a way that the installed anndata does not read ({_said(error)}). Write it again with "
            "a current version.",
            rule="format_known",
            file=uri,
        ) from error


def text(value: Any) -> str:
    """A value of a file as text."""
    return value.decode() if isinstance(value, bytes) else str(value)


def _said(error: Exception) -> str:
    return " ".join(str(error).split())[:160]


def _is_group(node: Any) -> bool:
    return hasattr(node, "keys")


def _is_number(node: Any) -> bool:
    return not _is_group(node) and node.size == 1 and node.dtype.kind in "iuf"


def _record_table(node: Any) -> Any:
    """A table of before anndata 0.7: one record array whose first field holds the names."""
    import pandas as pd

    records = node[()]
    columns = {
        name: [text(value) for value in records[name]] if records.dtype[name].kind in "SO" else records[name]
        for name in records.dtype.names
        if records.dtype[name].shape == ()
    }
    index = next((name for name in ("index", "_index") if name in columns), records.dtype.names[0])
    return pd.DataFrame({k: v for k, v in columns.items() if k != index}, index=pd.Index(columns[index], name=None))


def _whole(values: np.ndarray) -> bool:
    if values.dtype.kind in "iub":
        return True
    return bool(np.isfinite(values).all() and (values == np.rint(values)).all())


def _read_sparse(group: Any) -> Any:
    from scipy.sparse import csc_array, csr_array

    attributes = dict(group.attrs)
    kind = text(attributes.get("encoding-type", attributes.get("h5sparse_format", "csr")))
    shape = tuple(int(n) for n in attributes["shape" if "shape" in attributes else "h5sparse_shape"])
    data = group["data"].astype(np.float32)[:]
    parts = (data, group["indices"][:], group["indptr"][:])
    return csc_array(parts, shape=shape).tocsr() if kind.startswith("csc") else csr_array(parts, shape=shape)


def _read_dense(dataset: Any) -> Any:
    from scipy.sparse import csr_array, vstack

    n, g = dataset.shape
    rows = max(1, BLOCK_VALUES // max(g, 1))
    if dataset.chunks:  # whole chunks, each read once
        rows = max(dataset.chunks[0], rows // dataset.chunks[0] * dataset.chunks[0])
    blocks = [csr_array(np.asarray(dataset[start : start + rows], dtype=np.float32)) for start in range(0, n, rows)]
    return csr_array(vstack(blocks, format="csr")) if blocks else csr_array((0, g), dtype=np.float32)
