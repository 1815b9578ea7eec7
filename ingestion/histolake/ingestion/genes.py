"""Genes of a source, as genes of the lake.

A source names its genes by symbol, by Ensembl id, or by both; the lake knows them by number, and sentences by symbol.
An Ensembl id becomes the symbol that the user's table or the shipped ones give it (GENCODE 44 for human, Ensembl for
mouse), so that two cohorts say one word for one gene; an id that no table has stays what it is. Two columns that turn
out to be one gene are added up, so that a profile holds each gene once.

Axes: N spots, G genes of the source, U genes of the lake.
"""

from __future__ import annotations

import csv
import hashlib
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from histolake.ingestion.housekeeping import mouse_genes
from histolake.platform.errors import SettingsError
from histolake.platform.storage import Location

if TYPE_CHECKING:
    from histolake.ingestion.slide import Slide
    from histolake.platform.lake import Lake

__all__ = [
    "GeneSettings",
    "GeneTable",
    "LakeGenes",
    "looks_like_ensembl",
    "resolve",
    "table_digest",
    "with_symbols",
    "without_version",
]

_ENSEMBL = re.compile(r"(ENS[A-Z]*G\d{11})(\.\d+)?(_PAR_Y)?")
SYMBOLS_MISSING = "symbols_missing"


@dataclass(frozen=True, kw_only=True)
class GeneSettings:
    """How a source's genes get their symbols."""

    table: str = ""  # path or URI of a CSV with columns ensembl_id,symbol; it wins over the shipped tables
    # fraction of the spots' expressed genes that may lack a symbol before the slide is flagged symbols_missing
    max_unnamed: float = 0.1


def looks_like_ensembl(name: str) -> bool:
    """Whether a gene's name is an Ensembl gene id, with or without its version."""
    return _ENSEMBL.fullmatch(name) is not None


def without_version(ensembl_id: str) -> str:
    """ENSG00000141736.14 -> ENSG00000141736; anything else comes back as it is."""
    match = _ENSEMBL.fullmatch(ensembl_id)
    return match.group(1) if match else ensembl_id


def with_symbols(slide: Slide, settings: GeneSettings) -> Slide:
    """The slide with Ensembl ids without versions, and with the tables' symbols wherever they have one.

    Where more than `max_unnamed` of the spots' expressed genes stay without one, the slide is flagged
    `symbols_missing`: its sentences hold Ensembl ids. `genes.table` helps.
    """
    given = slide.ensembl_ids or [None] * len(slide.symbols)
    names = [without_version(symbol) for symbol in slide.symbols]
    # A column may name its gene by the id alone, under either heading.
    ids = [
        without_version(e) if e else (name if looks_like_ensembl(name) else None)
        for e, name in zip(given, names, strict=True)
    ]
    tables = [_user_table(settings.table) if settings.table else {}, _shipped(slide.metadata.species or "human")]
    symbols = [
        name if e is None else next((table[e] for table in tables if e in table), name or e)
        for e, name in zip(ids, names, strict=True)
    ]
    unnamed_G = np.fromiter((looks_like_ensembl(s) for s in symbols), dtype=bool, count=len(symbols))
    flags = set(slide.flags)
    if unnamed_G.any():
        unnamed = unnamed_G[slide.counts.indices]
        if unnamed.sum() > settings.max_unnamed * len(unnamed):
            flags.add(SYMBOLS_MISSING)
    known = ids if any(e is not None for e in ids) else None
    return replace(slide, symbols=symbols, ensembl_ids=known, flags=tuple(sorted(flags)))


@cache
def _shipped(species: str) -> Mapping[str, str]:
    if species == "human":
        from histolake.platform.lake.genes import vocabulary

        table = vocabulary()
        pairs = zip(table["ensembl_id"].to_pylist(), table["symbol"].to_pylist(), strict=True)
        return {e: symbol for e, symbol in pairs if symbol and not looks_like_ensembl(symbol)}
    return {e: symbol for e, symbol, _ in mouse_genes()} if species == "mouse" else {}


def _user_table(uri: str) -> Mapping[str, str]:
    data = _table_bytes(uri)
    rows = csv.DictReader(io.StringIO(data.decode("utf-8-sig")))
    if not {"ensembl_id", "symbol"} <= set(rows.fieldnames or ()):
        raise SettingsError(
            f"The gene table {uri} has the columns {', '.join(rows.fieldnames or ()) or 'none'}; "
            "it needs ensembl_id and symbol."
        )
    pairs = ((without_version((row["ensembl_id"] or "").strip()), (row["symbol"] or "").strip()) for row in rows)
    return {ensembl: symbol for ensembl, symbol in pairs if ensembl and symbol}


def _table_bytes(uri: str) -> bytes:
    location = Location.parse(uri)
    if not location.is_file():
        raise SettingsError(f"genes.table names {uri}, where there is no file; give a CSV with ensembl_id,symbol.")
    return location.read_bytes()


def table_digest(settings: GeneSettings) -> str:
    """A hash of the user's table, "" where there is none. Raises `SettingsError` for one that cannot be used."""
    if not settings.table:
        return ""
    _user_table(settings.table)
    return hashlib.sha256(_table_bytes(settings.table)).hexdigest()


@dataclass(frozen=True, eq=False)
class GeneTable:
    """How the columns of one source map to the lake."""

    gene_ids_G: np.ndarray  # int32, the lake's number of each column
    symbols: list[str]  # what a sentence calls each column


def resolve(
    lake: Lake, symbols: Sequence[str], ensembl_ids: Sequence[str | None] | None, *, species: str, allocate: bool
) -> GeneTable:
    """The lake's numbers for a source's genes; -1 for one it does not know, unless `allocate` gives it a number."""
    clean = [None if e is None else without_version(e) for e in ensembl_ids] if ensembl_ids is not None else None
    if clean is None and any(looks_like_ensembl(s) for s in symbols):
        clean = [without_version(s) if looks_like_ensembl(s) else None for s in symbols]
        symbols = [without_version(s) for s in symbols]
    gene_ids_G = lake.resolve_genes(list(symbols), clean, species=species, allocate=allocate)
    return GeneTable(np.asarray(gene_ids_G, dtype=np.int32), list(symbols))


@dataclass(frozen=True, eq=False)
class LakeGenes:
    """The columns of one source by gene of the lake."""

    gene_ids_U: np.ndarray  # int32, rising
    symbols: list[str]  # U, of the first column that has the gene
    _column_G: np.ndarray  # which of the U a column of the source is

    @classmethod
    def of(cls, genes: GeneTable) -> LakeGenes:
        """The genes of the lake that the columns are."""
        gene_ids_U, first, column_G = np.unique(genes.gene_ids_G, return_index=True, return_inverse=True)
        return cls(gene_ids_U.astype(np.int32), [genes.symbols[i] for i in first], column_G.astype(np.int32))

    def counts(self, counts_NG: Any) -> Any:
        """Counts of some spots as a sparse (N, U) matrix with sorted indices and no stored zeros. The values given are
        put in order on the way."""
        from scipy.sparse import csr_array

        shape = (counts_NG.shape[0], len(self.gene_ids_U))
        summed = csr_array((counts_NG.data, self._column_G[counts_NG.indices], counts_NG.indptr), shape=shape)
        summed.sum_duplicates()
        summed.eliminate_zeros()
        return summed
