"""Genes of a source as genes of a real lake."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy.sparse import csr_array

from histolake.ingestion.genes import GeneTable, as_lake_genes, looks_like_ensembl, resolve, without_version
from histolake.platform.lake import Lake

ERBB2 = "ENSG00000141736"


def test_ensembl_ids() -> None:
    assert without_version(f"{ERBB2}.14") == without_version(ERBB2) == ERBB2
    assert without_version("FO538757.1") == "FO538757.1"
    assert looks_like_ensembl("ENSMUSG00000064339.3")
    assert not looks_like_ensembl("ERBB2")


def test_symbols_and_ensembl_ids_name_one_gene(tmp_path: Path) -> None:
    lake = Lake.open(tmp_path / "lake", create=True)
    by_symbol = resolve(lake, ["ERBB2", "NOT-A-GENE"], None, species="human", allocate=False)
    by_id = resolve(lake, [f"{ERBB2}.14", "NOT-A-GENE"], None, species="human", allocate=False)
    both = resolve(lake, ["an old name"], [f"{ERBB2}.3"], species="human", allocate=False)
    assert by_symbol.gene_ids_G.tolist() == by_id.gene_ids_G.tolist()
    assert by_symbol.gene_ids_G[0] == both.gene_ids_G[0] >= 0
    assert by_symbol.gene_ids_G[1] == -1
    first = resolve(lake, ["NOT-A-GENE"], None, species="human", allocate=True)
    again = resolve(Lake.open(tmp_path / "lake"), ["NOT-A-GENE"], None, species="human", allocate=False)
    assert first.gene_ids_G[0] == again.gene_ids_G[0] > by_symbol.gene_ids_G[0]


def test_columns_of_one_gene_are_added_up() -> None:
    counts = csr_array(np.array([[1, 0, 2, 4], [0, 3, 0, 0]], dtype=np.float32))
    genes = GeneTable(np.array([7, 3, 7, 5], dtype=np.int32), ["A", "B", "A old", "C"])
    summed, gene_ids, symbols = as_lake_genes(counts, genes)
    assert gene_ids.tolist() == [3, 5, 7]
    assert symbols == ["B", "C", "A"]
    np.testing.assert_array_equal(summed.toarray(), [[0, 4, 3], [3, 0, 0]])
    assert summed.has_sorted_indices
    assert summed.nnz == 3
