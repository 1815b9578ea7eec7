"""Species by their names, and by what genes say."""

from __future__ import annotations

import pytest

from histolake.ingestion.species import check_species, species_name, species_votes
from histolake.platform.errors import SourceError

HUMAN = ["ACTB", "GAPDH", "ERBB2", "COL1A1", "KRT8", "MUC1", "VIM", "CD74", "XBP1", "EPCAM", "ESR1", "PTPRC"]
MOUSE = ["Actb", "Gapdh", "Erbb2", "Col1a1", "Krt8", "Muc1", "Vim", "Cd74", "Xbp1", "Epcam", "Esr1", "Ptprc"]


def judged(stated: str | None, symbols: list[str], ids: list[str | None] | None = None, fit: float = 0.9) -> str | None:
    return check_species(stated, symbols, ids, min_fit=fit, file="counts.tsv")


def refusal(stated: str | None, symbols: list[str], ids: list[str | None] | None = None) -> SourceError:
    with pytest.raises(SourceError) as caught:
        judged(stated, symbols, ids)
    assert (caught.value.rule, caught.value.file) == ("species_fits", "counts.tsv")
    return caught.value


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Homo sapiens", "human"),
        (" HUMAN ", "human"),
        ("homo_sapiens", "human"),
        ("9606", "human"),
        ("Mus musculus", "mouse"),
        ("mm10", "mouse"),
        ("Ambystoma mexicanum", "ambystoma mexicanum"),
        ("", None),
        (None, None),
    ],
)
def test_one_name_a_species(text: str | None, name: str | None) -> None:
    assert species_name(text) == name


def test_votes_go_by_id_then_by_symbol() -> None:
    symbols = ["ACTB", "Actb", "GENE1", "ACTB", "mm10___Actb", "GRCh38_Actb"]
    ids: list[str | None] = [None, None, None, "ENSMUSG00000029580.14", None, None]
    assert species_votes(symbols, ids) == {"human": 2, "mouse": 3}
    assert species_votes(["ENSRNOG00000034254", "GRCh38_ENSG00000075624.17"], None) == {"rat": 1, "human": 1}


def test_what_is_not_stated_is_recognised() -> None:
    assert judged(None, HUMAN) == "human"
    assert judged(None, MOUSE) == "mouse"
    assert judged(None, [f"ENSDARG{i:011d}" for i in range(12)]) == "zebrafish"


def test_too_few_telling_genes_conclude_nothing() -> None:
    assert judged(None, ["GENE1", "ACTB"]) is None
    assert judged("mouse", HUMAN[:9]) == "mouse"


def test_a_stated_species_that_the_genes_contradict() -> None:
    error = refusal("Mus musculus", HUMAN)
    assert (error.figure, error.limit) == (0.0, 0.9)
    assert "said to be mouse, but its genes are of human (12 human)" in str(error)
    refusal("rat", [f"g{i}" for i in range(12)], [f"ENSMUSG{i:011d}" for i in range(12)])


def test_two_species_in_one_section() -> None:
    error = refusal(None, HUMAN + MOUSE)
    assert error.figure == 0.5
    assert "more than one species (12 human, 12 mouse)" in str(error)
    refusal("human", HUMAN + MOUSE)
    assert judged("human", [*HUMAN, "Actb"]) == "human"  # a transgene


def test_a_threshold_decides() -> None:
    symbols = HUMAN + MOUSE[:3]
    assert judged(None, symbols, fit=0.8) == "human"
    assert refusal(None, symbols).figure == 0.8


def test_symbols_of_other_species_are_not_told_apart() -> None:
    """A rat's symbols look like a mouse's, so a stated rat is judged by ids alone."""
    assert judged("Rattus norvegicus", MOUSE) == "rat"
