"""Gene ids: a shipped vocabulary, and unknown genes allocated in one commit.

The vocabulary is GENCODE release 44 (human, Ensembl ids and symbols; `data/genes.md` states source and terms). A gene's
id is its place in it. A gene that it lacks (an older symbol, another species) gets the next free id in the lake's own
`catalog/genes`; ids stay for ever and are never used again.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import cache, lru_cache
from importlib.resources import files

import numpy as np
import pyarrow as pa
import pyarrow.csv
from deltalake import CommitProperties, write_deltalake

from histolake.platform.errors import ConflictError, UsageError
from histolake.platform.lake.again import FAILURES, again, pause
from histolake.platform.lake.catalog import PUBLISH_TRIES, Catalog
from histolake.platform.schemas import GENES

__all__ = ["GeneTable", "vocabulary"]

UNKNOWN = -1


@cache
def vocabulary() -> pa.Table:
    """The shipped genes as a table of `schemas.GENES`."""
    packed = files("histolake.platform").joinpath("data/gencode_v44_human.csv.gz").read_bytes()
    with pa.input_stream(pa.py_buffer(packed), compression="gzip") as stream:
        listed = pyarrow.csv.read_csv(
            stream, read_options=pyarrow.csv.ReadOptions(column_names=["ensembl_id", "symbol"])
        )
    return pa.table(
        {
            "gene_id": pa.array(np.arange(listed.num_rows, dtype=np.int32)),
            "ensembl_id": listed["ensembl_id"],
            "symbol": listed["symbol"],
            "species": pa.array(["human"] * listed.num_rows),
        },
        schema=GENES,
    )


class GeneTable:
    """`catalog/genes` of one lake."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._cached: tuple[int, pa.Table, _Names] | None = None

    def create(self) -> None:
        """Write the vocabulary unless it is there."""
        self._catalog.create_with("genes", GENES, vocabulary())

    def read(self) -> pa.Table:
        """Every gene of the lake, by gene_id."""
        return self._read()[1]

    def _read(self) -> tuple[int, pa.Table, _Names]:
        table = self._catalog.table("genes")
        if self._cached is None or self._cached[0] != table.version():
            dataset = self._catalog.dataset("genes", table)
            found = again(lambda: dataset.to_table().select(GENES.names).cast(GENES.remove_metadata()))
            self._cached = (table.version(), found.sort_by("gene_id"), _names_of(table.metadata().id))
        return self._cached

    def resolve(
        self,
        symbols: Sequence[str],
        ensembl_ids: Sequence[str | None] | None = None,
        *,
        species: str = "human",
        allocate: bool = False,
    ) -> np.ndarray:
        """Gene ids, int32 (G,), of genes given by symbol and, where known, by Ensembl id without its version.

        An Ensembl id decides where it is known to the lake; else the symbol does (the first gene of that symbol). What
        is unknown is -1, or with `allocate` gets an id in one commit that every later writer sees.
        """
        keys = list(zip(symbols, ensembl_ids or [None] * len(symbols), strict=True))
        if any(not symbol and not ensembl for symbol, ensembl in keys):
            raise UsageError("A gene has neither a symbol nor an Ensembl id; give every gene one of the two.")
        for _ in range(PUBLISH_TRIES):
            version, table, names = self._read()
            ids = names.look_up(table, keys, species)
            missing = sorted({key for key, gene_id in zip(keys, ids, strict=True) if gene_id == UNKNOWN}, key=str)
            if not missing or not allocate:
                return ids
            self._allocate(version, table, missing, species)
        raise ConflictError("Gene ids could not be allocated: other writers won every commit; try again.")

    def _allocate(self, version: int, table: pa.Table, missing: list[tuple[str, str | None]], species: str) -> None:
        first = int(table["gene_id"][-1].as_py()) + 1 if table.num_rows else 0
        rows = pa.table(
            {
                "gene_id": pa.array(np.arange(first, first + len(missing), dtype=np.int32)),
                "ensembl_id": pa.array([ensembl for _, ensembl in missing], pa.string()),
                "symbol": pa.array([symbol or ensembl for symbol, ensembl in missing], pa.string()),
                "species": pa.array([species] * len(missing), pa.string()),
            },
            schema=GENES.remove_metadata(),
        )
        delta = self._catalog.table("genes")
        if delta.version() != version:
            return  # another writer allocated in the meantime: look again
        try:
            write_deltalake(delta, rows, mode="append", commit_properties=CommitProperties(max_commit_retries=0))
        except FAILURES:
            pause(0)
            return  # lost the race, or won it unknowingly: looking again tells


class _Names:
    """Ids by name, of a table that only ever grows: every row is looked at once. Threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rows = 0
        self._by_symbol: dict[str, dict[str, int]] = {}  # species -> symbol -> the first gene of that name
        self._by_ensembl: dict[str, dict[str, int]] = {}

    def look_up(self, table: pa.Table, keys: Sequence[tuple[str, str | None]], species: str) -> np.ndarray:
        """Ids of (symbol, Ensembl id), int32; -1 for what the table lacks."""
        with self._lock:
            self._add(table.slice(self._rows))
        by_symbol, by_ensembl = self._by_symbol.get(species, {}), self._by_ensembl.get(species, {})
        found = [by_ensembl.get(ensembl or "", by_symbol.get(symbol, UNKNOWN)) for symbol, ensembl in keys]
        return np.asarray(found, dtype=np.int32)

    def _add(self, new: pa.Table) -> None:
        columns = (new[name].to_pylist() for name in ("gene_id", "ensembl_id", "symbol", "species"))
        for gene_id, ensembl, symbol, kind in zip(*columns, strict=True):
            self._by_symbol.setdefault(kind, {}).setdefault(symbol, gene_id)
            if ensembl:
                self._by_ensembl.setdefault(kind, {}).setdefault(ensembl, gene_id)
        self._rows += new.num_rows


@lru_cache(maxsize=8)
def _names_of(table_id: str) -> _Names:
    """Those of a table, by the id that Delta gave it when it was made: a worker opens the lake anew for each section,
    and sixty thousand names would be gone through each time."""
    return _Names()
