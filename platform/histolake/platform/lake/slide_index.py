"""Which files of `catalog/slides` hold the live rows of which slides.

A Delta file never changes, so its names are read once; asking again after other commits costs the files that these
brought. No statistics of names are kept in the table (they would stay in its log after a slide was forgotten), and so
they are kept here, in memory: some 30 bytes a slide.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow.parquet import ParquetFile

from histolake.platform.storage import Location

__all__ = ["SlideIndex", "conform"]

READ_TOGETHER = 8  # files at once: a store answers each in its own time
_KEYS = pa.schema([pa.field("slide_id", pa.string()), pa.field("retired_in", pa.int64())])


class SlideIndex:
    """The names in the files of one table, for as long as its owner lives."""

    def __init__(self, place: Location) -> None:
        self._place = place
        self._names: dict[str, pa.Array] = {}  # file -> slide_ids of its live rows

    def read(self, files: Iterable[str], slide_ids: Iterable[str], schema: pa.Schema) -> pa.Table:
        """The live rows of some slides, with the columns of `schema` (null where a file lacks one).

        `files` are those of the table's version. Raises `FileNotFoundError` where one was cleaned away meanwhile.
        """
        files = sorted(files)
        unknown = [file for file in files if file not in self._names]
        self._names = {file: self._names[file] for file in files if file in self._names} | self._learn(unknown)
        wanted = pa.array(sorted(set(slide_ids)), pa.string())
        holding = [file for file in files if pc.any(pc.is_in(self._names[file], value_set=wanted)).as_py()]
        return pa.concat_tables([schema.empty_table(), *(self._rows(file, wanted, schema) for file in holding)])

    def _learn(self, files: list[str]) -> dict[str, pa.Array]:
        if not files:
            return {}
        with ThreadPoolExecutor(min(READ_TOGETHER, len(files))) as readers:
            return dict(zip(files, readers.map(self._live_names, files), strict=True))

    def _live_names(self, file: str) -> pa.Array:
        rows = self._read(file, _KEYS)
        return rows.filter(pc.is_null(rows["retired_in"]))["slide_id"].combine_chunks()

    def _rows(self, file: str, wanted: pa.Array, schema: pa.Schema) -> pa.Table:
        full = self._read(file, pa.unify_schemas([schema, _KEYS]))
        keep = pc.and_(pc.is_in(full["slide_id"], value_set=wanted), pc.is_null(full["retired_in"]))
        return full.filter(keep).select(schema.names)

    def _read(self, file: str, schema: pa.Schema) -> pa.Table:
        filesystem, root = self._place.filesystem()
        with ParquetFile(f"{root}/{file}", filesystem=filesystem, pre_buffer=True) as opened:
            held = set(opened.schema_arrow.names)
            return conform(opened.read(columns=[name for name in schema.names if name in held]), schema)


def conform(rows: Any, schema: pa.Schema) -> pa.Table:
    """Rows with exactly the columns of a schema: what they lack is null, as an older lake lacks what came later."""
    held = set(rows.schema.names)
    full = [rows[f.name].cast(f.type) if f.name in held else pa.nulls(rows.num_rows, f.type) for f in schema]
    return pa.Table.from_arrays(full, schema=schema)
