"""Genes of a source as genes of a real lake."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import csr_array

from histolake.ingestion.genes import (
    GeneSettings,
    GeneTable,
    LakeGenes,
    looks_like_ensembl,
    resolve,
    table_digest,
    with_symbols,
    without_version,
)
from histolake.ingestion.slide import Slide, SlideMetadata
from histolake.platform.errors import SettingsError
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
    lake_genes = LakeGenes.of(genes)
    assert lake_genes.gene_ids_U.tolist() == [3, 5, 7]
    assert lake_genes.symbols == ["B", "C", "A"]
    summed = lake_genes.counts(counts)
    np.testing.assert_array_equal(summed.toarray(), [[0, 4, 3], [3, 0, 0]])
    assert summed.has_sorted_indices
    assert summed.nnz == 3


def slide_of(symbols: list[str], ids: list[str | None] | None, species: str | None, counts: list[float]) -> Slide:
    return Slide(
        metadata=SlideMetadata(species=species),
        barcodes=np.array(["b"]),
        array_row=np.zeros(1, dtype=np.float32),
        array_col=np.zeros(1, dtype=np.float32),
        xy_px=np.zeros((1, 2)),
        counts=csr_array(np.array([counts], dtype=np.float32)),
        symbols=symbols,
        ensembl_ids=ids,
        image=None,
    )


def test_ids_become_symbols() -> None:
    """With a version, under either heading, of either species; an id that no table has stays."""
    human = with_symbols(slide_of([f"{ERBB2}.14", "KRT8", "ENSG99999999999.1"], None, None, [9, 9, 0]), GeneSettings())
    assert human.symbols == ["ERBB2", "KRT8", "ENSG99999999999"]
    assert human.ensembl_ids == [ERBB2, None, "ENSG99999999999"]
    assert human.flags == ()
    mouse = slide_of(["ENSMUSG00000064351.1", "x"], [None, "ENSMUSG00000029580.14"], "mouse", [1, 1])
    assert with_symbols(mouse, GeneSettings()).symbols == ["mt-Co1", "Actb"]


def test_one_gene_has_one_symbol_whatever_the_source_calls_it() -> None:
    old = slide_of(["GNB2L1", "AL669831.5"], ["ENSG00000204628", "ENSG00000237491"], "human", [1, 1])
    assert with_symbols(old, GeneSettings()).symbols == ["RACK1", "LINC01409"]


def test_a_name_of_the_source_is_kept_where_the_table_has_only_the_id() -> None:
    unnamed = slide_of(["AC000001.1"], ["ENSG00000290826"], "human", [1])
    assert with_symbols(unnamed, GeneSettings()).symbols == ["AC000001.1"]


def test_symbols_that_are_missing_are_told(tmp_path: Path) -> None:
    pig = slide_of(["ENSSSCG00000000001", "ENSSSCG00000000002", "KRT8"], None, "pig", [2, 1, 7])
    flagged = with_symbols(replace(pig, flags=("image_reduced",)), GeneSettings())
    assert flagged.flags == ("image_reduced", "symbols_missing")
    assert with_symbols(pig, GeneSettings(max_unnamed=0.7)).flags == ()
    table = tmp_path / "pig.csv"
    table.write_text("ensembl_id,symbol,note\nENSSSCG00000000001.4,PIG1,\nENSSSCG00000000003,PIG3,\n")
    named = with_symbols(pig, GeneSettings(table=str(table), max_unnamed=0.4))
    assert named.symbols == ["PIG1", "ENSSSCG00000000002", "KRT8"]
    assert named.flags == ()


def test_a_gene_table_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="there is no file"):
        table_digest(GeneSettings(table=str(tmp_path / "gone.csv")))
    (tmp_path / "wrong.csv").write_text("id,name\na,b\n")
    with pytest.raises(SettingsError, match="it needs ensembl_id and symbol"):
        table_digest(GeneSettings(table=str(tmp_path / "wrong.csv")))


def test_real_mouse_sections_speak_in_symbols(real_sections: Path) -> None:
    import anndata

    h5ad = anndata.read_h5ad(real_sections / "mob_st" / "MOB1.h5ad")
    slide = slide_of(list(h5ad.var_names), None, "mouse", [1.0] * h5ad.n_vars)
    named = with_symbols(replace(slide, counts=csr_array(h5ad.X)), GeneSettings())
    assert sum(looks_like_ensembl(symbol) for symbol in named.symbols) <= 4  # of 1,000
    assert "symbols_missing" not in named.flags
    assert {"mt-Co1", "Penk", "Plp1"} <= set(named.symbols)
