"""Gene sentences against golden strings and against a sort that anybody can read."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_array

from histolake.ingestion.sentences import GeneSentences, SentenceSettings, gene_sentences

ALL = SentenceSettings(exclude="")


def plainly(row: np.ndarray, symbols: list[str], length: int) -> str:
    ranked = sorted((-value, symbol) for value, symbol in zip(row, symbols, strict=True) if value > 0)
    return " ".join(symbol for _, symbol in ranked[:length])


def test_golden() -> None:
    symbols = ["ZEB1", "ACTB", "KRT8", "ERBB2", "MUC1"]
    counts = csr_array(np.array([[1, 7, 0, 7, 2], [0, 0, 0, 0, 0], [0.5, 0, 0.25, 0, 0.5]], dtype=np.float32))
    assert gene_sentences(counts, symbols, ALL) == ["ACTB ERBB2 MUC1 ZEB1", "", "MUC1 ZEB1 KRT8"]


def test_agrees_with_a_plain_sort() -> None:
    rng = np.random.default_rng(0)
    symbols = [f"G{i}" for i in rng.permutation(400)]
    dense = rng.poisson(0.8, (300, 400)).astype(np.float32) * rng.choice([1, 0.37], 400).astype(np.float32)
    found = gene_sentences(csr_array(dense), symbols, SentenceSettings(length=17, exclude=""))
    assert found == [plainly(row, symbols, 17) for row in dense]


def test_rows_of_very_different_depth_follow_each_other() -> None:
    """What the last row was cut at tells nothing of the next."""
    rng = np.random.default_rng(3)
    symbols = [f"G{i}" for i in rng.permutation(300)]
    depth = np.array([500, 0.02, 30, 0, 900, 900, 1e-3, 4, 0.3, 60])[:, None]
    dense = rng.poisson(rng.gamma(0.5, 2.0, 300) * depth).astype(np.float32)
    dense = np.concatenate([dense, dense * np.float32(1e-4), dense * np.float32(1e6)])
    found = gene_sentences(csr_array(dense), symbols, SentenceSettings(length=23, exclude=""))
    assert found == [plainly(row, symbols, 23) for row in dense]
    assert GeneSentences(symbols, SentenceSettings(length=23, exclude="")).of_sums(dense) == found


def test_genes_that_are_left_out_do_not_take_the_place_of_others() -> None:
    dense = np.random.default_rng(4).poisson(3.0, (50, 120)).astype(np.float32)
    symbols = [f"MT-{i}" if i % 3 else f"G{i}" for i in range(120)]
    dense[:, np.arange(120) % 3 > 0] += 50
    found = gene_sentences(csr_array(dense), symbols, SentenceSettings(length=10))
    told = [i for i in range(120) if i % 3 == 0]
    assert found == [plainly(row[told], [symbols[i] for i in told], 10) for row in dense]


def test_a_stored_zero_is_no_expression() -> None:
    counts = csr_array((np.array([0, 3], dtype=np.float32), np.array([0, 1]), np.array([0, 2])), shape=(1, 2))
    assert gene_sentences(counts, ["AAA", "BBB"], ALL) == ["BBB"]


def test_more_counts_of_everything_say_the_same() -> None:
    dense = np.random.default_rng(1).poisson(2.0, (20, 90)).astype(np.float32)
    symbols = [f"G{i}" for i in range(90)]
    assert gene_sentences(csr_array(dense), symbols, ALL) == gene_sentences(csr_array(np.log1p(dense)), symbols, ALL)


@pytest.mark.parametrize("symbol", ["MT-CO1", "RPL13", "RPL13A", "RPS27L", "RPLP0", "RPSA", "RPS4Y1", "mt-Nd1"])
def test_genes_of_every_cell_are_left_out(symbol: str) -> None:
    counts = csr_array(np.array([[9, 1]], dtype=np.float32))
    assert gene_sentences(counts, [symbol, "ERBB2"], SentenceSettings()) == ["ERBB2"]


@pytest.mark.parametrize("symbol", ["MTOR", "RPS6KA1", "RPLP0P6", "MTHFR", "RPTOR"])
def test_genes_that_only_look_like_them_stay(symbol: str) -> None:
    counts = csr_array(np.array([[9, 1]], dtype=np.float32))
    assert gene_sentences(counts, [symbol, "ERBB2"], SentenceSettings()) == [f"{symbol} ERBB2"]


def test_named_genes_are_left_out_whatever_their_case() -> None:
    counts = csr_array(np.array([[9, 8, 7]], dtype=np.float32))
    assert gene_sentences(counts, ["ACTB", "Actb", "ERBB2"], ALL, {"ACTB"}) == ["ERBB2"]
    assert gene_sentences(counts, ["ACTB", "Actb", "ERBB2"], SentenceSettings(length=1), frozenset()) == ["ACTB"]
