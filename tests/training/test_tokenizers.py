"""Tokenizers: open_clip's own ids, one token a gene, whole batches as single sentences, and back from the card."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from histolake.platform.errors import ModelError
from histolake.training.tokenizers import (
    BpeTokenizer,
    GeneTokenizer,
    Tokenizer,
    check_match,
    lake_symbols,
    make_tokenizer,
    tokenizer_from_card,
)
from histolake.training.tokenizers.symbols import SymbolTable

SYMBOLS = ("IGKC", "HLA-DRA", "COL1A1", "ERBB2", "MT-CO1", "AP000769.1", "VIM")


def test_tokens_are_open_clips_and_survivors_are_counted() -> None:
    from open_clip.tokenizer import SimpleTokenizer

    tokenizer = BpeTokenizer()
    sentence = "IGKC HLA-DRA COL1A1 ERBB2 MT-CO1 AP000769.1"
    long = " ".join(["ERBB2", "HLA-DRA"] * 25)
    theirs = SimpleTokenizer(context_length=76)
    for batch in ([sentence], [long], [sentence, "", long, "VIM"]):
        np.testing.assert_array_equal(tokenizer(batch), theirs(batch).numpy())
    assert tokenizer([]).shape == (0, 76) and tokenizer([""]).dtype == np.int64
    assert tokenizer.genes_surviving([sentence, "VIM"]) == pytest.approx(3.5)
    assert np.isnan(tokenizer.genes_surviving([]))
    pieces = len(theirs.encode("ERBB2"))
    assert tokenizer.genes_surviving([" ".join(["ERBB2"] * 50)]) == 74 // pieces < 50
    assert tokenizer([long])[0, -1] == theirs.eot_token_id  # the end token is kept


def test_a_pair_without_a_sentence_is_a_row_of_zeros() -> None:
    for tokenizer in (BpeTokenizer(), GeneTokenizer(SYMBOLS)):
        rows = tokenizer(["VIM", None, "VIM"])
        assert not rows[1].any()
        np.testing.assert_array_equal(rows[[0, 2]], tokenizer(["VIM", "VIM"]))
        assert tokenizer.genes_surviving(["VIM", None]) == 1


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.sampled_from(["a", "bb", "ccc", "dddd", "-"]), max_size=12), max_size=6), st.integers(3, 9))
def test_rows_are_what_a_plain_loop_gives(words: list[list[str]], context: int) -> None:
    def encode(symbol: str) -> list[int]:
        return [ord(letter) for letter in symbol if letter != "-"]  # "-" has no ids at all

    expected = np.zeros((len(words), context), dtype=np.int64)
    whole = []
    for row, symbols in enumerate(words):
        ids = [one for symbol in symbols for one in encode(symbol)][: context - 2]
        expected[row, : len(ids) + 2] = [200, *ids, 201]
        ends = np.cumsum([len(encode(symbol)) for symbol in symbols])
        whole.append(int((ends <= context - 2).sum()))
    table = SymbolTable(encode, start=200, end=201)
    sentences = [" ".join(symbols) for symbols in words]
    np.testing.assert_array_equal(table.rows(sentences, context), expected)
    if words:
        assert table.surviving(sentences, context) == pytest.approx(np.mean(whole))
    for arrow in (pa.array(sentences, pa.string()), pa.array(["x", *sentences], pa.large_string())[1:]):
        rows, counted = SymbolTable(encode, start=200, end=201).counted(arrow, context)
        np.testing.assert_array_equal(rows, expected)
        assert counted.tolist() == whole


@pytest.mark.parametrize("made", [BpeTokenizer(20), GeneTokenizer(SYMBOLS, 6)], ids=["bpe", "gene"])
def test_arrow_sentences_are_split_as_python_splits(made: Tokenizer) -> None:
    for sentences in (
        ["VIM  ERBB2", " VIM ", "", "  ", None, "IGKC\tVIM\n", "a\u2003b", "NoSuchGene VIM"],
        ["VIM ERBB2", None, "IGKC"],
    ):
        rows, counted = made.counted(pa.array(sentences))
        np.testing.assert_array_equal(rows, made(sentences))
        each = [made.genes_surviving([sentence]) if sentence is not None else 0.0 for sentence in sentences]
        assert counted.tolist() == each


def test_threads_may_share_a_table_that_forgets() -> None:
    vocabulary = [f"G{number}" for number in range(300)]
    draw = np.random.default_rng(0)
    batches = [[" ".join(draw.choice(vocabulary, 20)) for _ in range(8)] for _ in range(40)]
    shared = SymbolTable(lambda symbol: [int(symbol[1:]) + 1], start=400, end=401, most=40)
    with ThreadPoolExecutor(4) as pool:
        for batch, rows in zip(batches, pool.map(lambda batch: shared.rows(batch, 22), batches), strict=True):
            expected = [[400, *(int(symbol[1:]) + 1 for symbol in sentence.split()), 401] for sentence in batch]
            assert rows.tolist() == expected


def test_all_fifty_genes_fit_into_52_tokens() -> None:
    symbols = lake_symbols()
    tokenizer = make_tokenizer("gene", 52)
    sentence = " ".join(symbols[:50])
    (row,) = tokenizer([sentence])
    assert row.tolist() == [tokenizer.vocab_size - 2, *range(2, 52), tokenizer.vocab_size - 1]
    assert tokenizer.genes_surviving([sentence]) == 50
    assert len(symbols) == len(set(symbols)) == tokenizer.vocab_size - 4 > 50_000
    with_unknown = tokenizer([f"{symbols[7]} NoSuchGene"])[0]
    assert with_unknown[1:3].tolist() == [9, 1]
    assert tokenizer.genes_surviving([f"{symbols[7]} NoSuchGene"]) == 1
    with pytest.raises(ModelError, match="at least one gene symbol"):
        GeneTokenizer(["", None])
    with pytest.raises(ModelError, match="hold a space, such as 'A B'"):
        GeneTokenizer(["VIM", "A B"])


@pytest.mark.parametrize("made", [BpeTokenizer(60), GeneTokenizer(SYMBOLS, 12)], ids=["bpe", "gene"])
def test_a_tokenizer_comes_back_from_its_card(made: Tokenizer) -> None:
    back = tokenizer_from_card(made.card())
    assert (back.name, back.context, back.vocab_size) == (made.name, made.context, made.vocab_size)
    np.testing.assert_array_equal(back(["ERBB2 VIM", "XX"]), made(["ERBB2 VIM", "XX"]))


def test_one_that_does_not_match_is_refused() -> None:
    card = GeneTokenizer(SYMBOLS).card()
    check_match(GeneTokenizer(SYMBOLS), card)
    for other, words in (
        (GeneTokenizer(SYMBOLS[::-1]), r"vocabulary \w{12}\.\.\. and not \w{12}\.\.\.;"),
        (GeneTokenizer(SYMBOLS[1:]), "vocabulary size 10 and not 11"),
        (GeneTokenizer(SYMBOLS, 30), "context 30 and not 52"),
        (BpeTokenizer(), "name bpe and not gene"),
    ):
        with pytest.raises(ModelError, match=words) as refused:
            check_match(other, card)
        assert str(refused.value).count(".") - str(refused.value).count("...") * 3 == 1
    with pytest.raises(ModelError, match="another tokenizer"):
        tokenizer_from_card(card | {"vocabulary": ["VIM", *card["vocabulary"][:-1]]})
    with pytest.raises(ModelError, match="no vocabulary"):
        tokenizer_from_card({key: value for key, value in card.items() if key != "vocabulary"})
    with pytest.raises(ModelError, match="no tokenizer 'words'"):
        make_tokenizer("words", 76)
