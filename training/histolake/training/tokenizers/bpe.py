"""The paper's tokenizer: open_clip's byte pairs, symbol by symbol."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from histolake.training.tokenizers.symbols import SymbolTable

__all__ = ["BpeTokenizer"]


class BpeTokenizer:
    """open_clip's byte pairs as a `Tokenizer`; the ids equal open_clip's own on a sentence of symbols."""

    name = "bpe"

    def __init__(self, context: int = 76) -> None:
        from histolake.training.torchvision_shim import import_torchvision

        import_torchvision()
        from open_clip.tokenizer import SimpleTokenizer

        inner: Any = SimpleTokenizer(context_length=context)
        self.context = context
        self.vocab_size: int = inner.vocab_size
        self._table = SymbolTable(inner.encode, start=inner.sot_token_id, end=inner.eot_token_id)

    def __call__(self, sentences: Sequence[str | None]) -> np.ndarray:
        """Token ids, int64 (N, context): start, symbols, end, zeros. A long sentence is cut before its end token."""
        return self._table.rows(sentences, self.context)

    def counted(self, sentences: Sequence[str | None] | Any) -> tuple[np.ndarray, np.ndarray]:
        """The same, and how many symbols of each sentence survive, int64 (N,); also of an Arrow array."""
        return self._table.counted(sentences, self.context)

    def genes_surviving(self, sentences: Sequence[str | None]) -> float:
        """Mean number of whole symbols of a sentence that fit in the context; NaN for no sentences."""
        return self._table.surviving(sentences, self.context)

    def card(self) -> dict[str, Any]:
        """Plain JSON; the byte pairs themselves are open_clip's and part of no card."""
        return {"name": self.name, "context": self.context, "vocab_size": self.vocab_size}
