"""What stands for the tokenizer of a model that reads profiles or vectors and no sentences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from histolake.platform.errors import ModelError

__all__ = ["NoSentences"]


class NoSentences:
    """A `Tokenizer` in its place: it says that there is nothing to tokenise for."""

    name = "none"
    context = 0
    vocab_size = 0

    def __call__(self, sentences: Sequence[str | None]) -> np.ndarray:
        raise ModelError("This model reads no gene sentences; give it pictures, or expression profiles.")

    def counted(self, sentences: Sequence[str | None] | Any) -> tuple[np.ndarray, np.ndarray]:
        """As calling it does."""
        return self(sentences), np.zeros(len(sentences), dtype=np.int64)

    def genes_surviving(self, sentences: Sequence[str | None]) -> float:
        """NaN: no sentence is ever cut."""
        return float("nan")

    def card(self) -> dict[str, Any]:
        """What a model's card says of it."""
        return {"name": self.name, "context": self.context, "vocab_size": self.vocab_size}
