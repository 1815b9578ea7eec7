"""Genes of a source, as genes of the lake.

A source names its genes by symbol, by Ensembl id, or by both; the lake knows them by number. Two columns that turn
out to be one gene are added up, so that a profile holds each gene once.

Axes: N spots, G genes of the source, U genes of the lake.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from histolake.platform.lake import Lake

__all__ = ["GeneTable", "as_lake_genes", "looks_like_ensembl", "resolve", "without_version"]

_ENSEMBL = re.compile(r"(ENS[A-Z]*G\d{11})(\.\d+)?(_PAR_Y)?")


def looks_like_ensembl(name: str) -> bool:
    """Whether a gene's name is an Ensembl gene id, with or without its version."""
    return _ENSEMBL.fullmatch(name) is not None


def without_version(ensembl_id: str) -> str:
    """ENSG00000141736.14 -> ENSG00000141736; anything else comes back as it is."""
    match = _ENSEMBL.fullmatch(ensembl_id)
    return match.group(1) if match else ensembl_id


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


def as_lake_genes(counts_NG: Any, genes: GeneTable) -> tuple[Any, np.ndarray, list[str]]:
    """Counts by gene of the lake: a sparse (N, U) matrix with sorted indices and no stored zeros, the U gene ids in
    rising order, and their symbols (of the first column that has the gene)."""
    from scipy.sparse import csr_array

    gene_ids_U, first, column_of_G = np.unique(genes.gene_ids_G, return_index=True, return_inverse=True)
    n = counts_NG.shape[0]
    summed = csr_array(
        (counts_NG.data, column_of_G[counts_NG.indices].astype(np.int32), counts_NG.indptr), shape=(n, len(gene_ids_U))
    )
    summed.sum_duplicates()
    summed.eliminate_zeros()
    return summed, gene_ids_U.astype(np.int32), [genes.symbols[i] for i in first]
