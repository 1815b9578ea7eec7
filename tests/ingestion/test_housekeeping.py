"""Which genes a sentence leaves out, and that a changed list is a changed setting."""

from __future__ import annotations

from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import csr_array

from histolake.ingestion import ingest_settings
from histolake.ingestion.genes import GeneSettings, table_digest
from histolake.ingestion.housekeeping import housekeeping_symbols, left_out, mouse_genes
from histolake.ingestion.pipeline import settings_digest
from histolake.ingestion.sentences import SentenceSettings, gene_sentences
from histolake.platform.errors import SettingsError
from histolake.platform.settings import load_settings

SYMBOLS = ["ACTB", "ERBB2", "GAPDH", "KRT8", "Actb", "Txn1"]
COUNTS = csr_array(np.array([[9, 8, 7, 6, 5, 4]], dtype=np.float32))


def sentence(setting: str, species: str = "human") -> str:
    settings = SentenceSettings(housekeeping=setting)
    return gene_sentences(COUNTS, SYMBOLS, settings, left_out(housekeeping_symbols(setting), species))[0]


def test_the_shipped_list_is_the_published_one() -> None:
    listed = housekeeping_symbols("shipped")
    assert len(listed) == 397 + 20  # the set, and earlier symbols of its genes
    assert listed == tuple(sorted(set(listed)))
    assert {"ACTB", "GAPDH", "B2M", "RPLP0", "ATP5F1B", "ATP5B"} <= set(listed)
    assert not {"ERBB2", "KRT8", "MUC1", ""} & set(listed)
    told = files("histolake.ingestion").joinpath("data/housekeeping_human.md").read_text()
    for fact in ("HSIAO_HOUSEKEEPING_GENES", "2025.1.Hs", "Creative Commons Attribution 4.0", "Hsiao"):
        assert fact in told


def test_sentences_leave_the_list_out() -> None:
    assert sentence("shipped") == "ERBB2 KRT8 Txn1"
    assert sentence("") == "ACTB ERBB2 GAPDH KRT8 Actb Txn1"


def test_on_mouse_it_stands_for_the_orthologues() -> None:
    """Txn1 is the one orthologue of TXN, and spelt unlike it."""
    assert sentence("shipped", "mouse") == "ERBB2 KRT8"
    by_symbol = {symbol: human for _, symbol, human in mouse_genes()}
    assert (by_symbol["Txn1"], by_symbol["Erbb2"], len(mouse_genes())) == ("TXN", "ERBB2", 56_655)


def test_a_list_of_ones_own(tmp_path: Path) -> None:
    own = tmp_path / "own.txt"
    own.write_text("# mine\nerbb2\n\n KRT8  # keratin\n")
    assert sentence(str(own)) == "ACTB GAPDH Actb Txn1"
    with pytest.raises(SettingsError, match="there is no file"):
        housekeeping_symbols(str(tmp_path / "gone.txt"))
    own.write_text("ACTB,GAPDH\n")
    with pytest.raises(SettingsError, match="one gene symbol a line"):
        housekeeping_symbols(str(own))
    own.write_text("# nothing yet\n")
    with pytest.raises(SettingsError, match="holds no symbols"):
        housekeeping_symbols(str(own))


def test_the_digest_goes_by_what_a_list_holds(tmp_path: Path) -> None:
    one, copy = tmp_path / "one.txt", tmp_path / "copy.txt"
    for path in (one, copy):
        path.write_text("ACTB\n")

    def digest(setting: str) -> str:
        return settings_digest(ingest_settings(load_settings({"sentences.housekeeping": setting})))

    before = digest(str(one))
    assert before == digest(str(copy))
    assert len({before, digest("shipped"), digest("")}) == 3
    one.write_text("ACTB\nGAPDH\n")
    assert digest(str(one)) != before


def test_the_digest_goes_by_what_a_gene_table_holds(tmp_path: Path) -> None:
    table = tmp_path / "genes.csv"
    table.write_text("ensembl_id,symbol\nENSG00000000001,ONE\n")
    settings = ingest_settings(load_settings())

    def digest() -> str:
        genes = GeneSettings(table=str(table))
        return settings_digest(replace(settings, genes=genes, gene_table=table_digest(genes)))

    before = digest()
    table.write_text("ensembl_id,symbol\nENSG00000000001,TWO\n")
    assert digest() != before != settings_digest(settings)
