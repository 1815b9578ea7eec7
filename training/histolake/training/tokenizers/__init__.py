"""Sentences to token ids, and how much of a sentence reaches the encoder.

    bpe    the paper's: open_clip's byte pairs, context 76. A gene symbol costs nearly three of them, so of a sentence
           of 50 symbols only about half fit between the start and end tokens; the rest is cut off without a word. That
           is why `genes_surviving` exists and is logged with every run.
    gene   one token a gene, from a vocabulary of symbols that travels with the model: 50 symbols fit into 52 tokens.

`make_tokenizer` is the door to a new one, `tokenizer_from_card` to the one that a model was trained with.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from histolake.training.tokenizers.base import Tokenizer, check_match
    from histolake.training.tokenizers.bpe import BpeTokenizer
    from histolake.training.tokenizers.door import make_tokenizer, tokenizer_from_card
    from histolake.training.tokenizers.genes import GeneTokenizer, lake_symbols

__all__ = [
    "BpeTokenizer",
    "GeneTokenizer",
    "Tokenizer",
    "check_match",
    "lake_symbols",
    "make_tokenizer",
    "tokenizer_from_card",
]

_HOME = {
    "BpeTokenizer": "bpe",
    "GeneTokenizer": "genes",
    "Tokenizer": "base",
    "check_match": "base",
    "lake_symbols": "genes",
    "make_tokenizer": "door",
    "tokenizer_from_card": "door",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"histolake.training.tokenizers.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
