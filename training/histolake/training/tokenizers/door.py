"""Tokenizers by name, and back from a model's card."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from histolake.platform.errors import ModelError
from histolake.training.tokenizers.base import Tokenizer, check_match
from histolake.training.tokenizers.bpe import BpeTokenizer
from histolake.training.tokenizers.genes import GeneTokenizer, lake_symbols

__all__ = ["TOKENIZERS", "make_tokenizer", "tokenizer_from_card"]

TOKENIZERS = ("bpe", "gene")


def make_tokenizer(name: str, context: int, symbols: Iterable[str | None] | None = None) -> Tokenizer:
    """The tokenizer of that name. `symbols` is the vocabulary of `gene`; without it, the symbols that every lake
    starts from."""
    if name == "bpe":
        return BpeTokenizer(context)
    if name == "gene":
        return GeneTokenizer(lake_symbols() if symbols is None else symbols, context)
    raise ModelError(f"There is no tokenizer {name!r}; there are {', '.join(TOKENIZERS)}.")


def tokenizer_from_card(card: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer whose `card()` this is. Raises `ModelError` where the card does not hold what it says."""
    if card.get("name") == "gene" and "vocabulary" not in card:
        raise ModelError(
            "The card of a gene tokenizer holds no vocabulary; publish the model again, vocabulary and all."
        )
    tokenizer = make_tokenizer(str(card.get("name")), int(card["context"]), card.get("vocabulary"))
    check_match(tokenizer, card, "The model of this card")
    return tokenizer
