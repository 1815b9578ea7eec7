"""Sentences to token ids, and how much of a sentence reaches the encoder.

`bpe` is the tokenizer of the paper (open_clip's byte pairs, context 76). A gene symbol costs nearly three byte pairs,
so of a sentence of 50 symbols only about half fit beside the start and end tokens; the rest is cut off without a word.
That is why `genes_surviving` exists and is logged with every run.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from histolake.platform.errors import ModelError

__all__ = ["TOKENIZERS", "BpeTokenizer", "make_tokenizer"]


class BpeTokenizer:
    """open_clip's byte pairs. Splits symbol by symbol and remembers each, because the same few thousand symbols come
    back in every sentence; the ids equal open_clip's own on a sentence of symbols."""

    name = "bpe"

    def __init__(self, context: int = 76) -> None:
        from histolake.training.torchvision_shim import import_torchvision

        import_torchvision()
        from open_clip.tokenizer import SimpleTokenizer

        self._inner: Any = SimpleTokenizer(context_length=context)
        self.context = context
        self.vocab_size: int = self._inner.vocab_size
        self._start: int = self._inner.sot_token_id
        self._end: int = self._inner.eot_token_id
        self._symbol = lru_cache(maxsize=200_000)(self._encode_symbol)

    def _encode_symbol(self, symbol: str) -> tuple[int, ...]:
        return tuple(self._inner.encode(symbol))

    def __call__(self, sentences: Sequence[str]) -> np.ndarray:
        """Token ids, int64 (N, context): start, symbols, end, zeros. A long sentence is cut before its end token."""
        tokens_NL = np.zeros((len(sentences), self.context), dtype=np.int64)
        for row, sentence in enumerate(sentences):
            ids = [token for symbol in sentence.split() for token in self._symbol(symbol)][: self.context - 2]
            tokens_NL[row, : len(ids) + 2] = [self._start, *ids, self._end]
        return tokens_NL

    def genes_surviving(self, sentences: Sequence[str]) -> float:
        """Mean number of whole symbols of a sentence that fit in the context; NaN for no sentences."""
        if not sentences:
            return float("nan")
        return float(np.mean([self._whole_symbols(sentence) for sentence in sentences]))

    def _whole_symbols(self, sentence: str) -> int:
        room = self.context - 2
        lengths = np.cumsum([len(self._symbol(symbol)) for symbol in sentence.split()])
        return int(np.searchsorted(lengths, room, side="right"))


TOKENIZERS = {"bpe": BpeTokenizer}


def make_tokenizer(name: str, context: int) -> BpeTokenizer:
    """The tokenizer of that name."""
    if name not in TOKENIZERS:
        raise ModelError(f"There is no tokenizer {name!r}; there is {', '.join(TOKENIZERS)}.")
    return TOKENIZERS[name](context)
