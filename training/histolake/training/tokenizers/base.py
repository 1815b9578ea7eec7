"""What every tokenizer is, and whether one fits a checkpoint.

Axes: N sentences, L tokens (the context: start, symbols, end, then zeros).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from histolake.platform.errors import ModelError

__all__ = ["PAD", "Tokenizer", "check_match"]

# open_clip's CoCa hides the tokens of this id from its class token; a row without a sentence is all of them.
PAD = 0


class Tokenizer(Protocol):
    """Sentences to token ids. The ids of start and end are the two highest, that of padding is 0."""

    name: str
    context: int  # tokens, start and end among them
    vocab_size: int

    def __call__(self, sentences: Sequence[str | None]) -> np.ndarray:
        """Token ids, int64 (N, context): start, symbols, end, zeros. A long sentence is cut before its end token; None
        (the pair has no sentence) is a row of zeros."""
        ...

    def counted(self, sentences: Sequence[str | None] | Any) -> tuple[np.ndarray, np.ndarray]:
        """Token ids as by calling, and how many whole symbols of each sentence reach the encoder, int64 (N,). An Arrow
        array of strings is taken too, and is the quickest."""
        ...

    def genes_surviving(self, sentences: Sequence[str | None]) -> float:
        """Mean number of whole symbols of a sentence that reach the encoder; NaN for no sentences."""
        ...

    def card(self) -> dict[str, Any]:
        """All that `tokenizer_from_card` needs to make the same tokenizer again, as plain JSON."""
        ...


def check_match(tokenizer: Tokenizer, wanted: Mapping[str, Any], what: str = "The checkpoint") -> None:
    """Raise `ModelError`, one sentence that names each difference, where `tokenizer` is not the one that a model was
    trained with. `wanted` holds what is known of that one: any of `name`, `context`, `vocab_size`,
    `vocabulary_digest`."""
    here = tokenizer.card()
    given = {key: here.get(key) for key in ("name", "context", "vocab_size", "vocabulary_digest")}
    words = {"name": "name", "context": "context", "vocab_size": "vocabulary size", "vocabulary_digest": "vocabulary"}
    differ = [
        f"{words[key]} {_short(value)} and not {_short(wanted[key])}"
        for key, value in given.items()
        if wanted.get(key) is not None and wanted[key] != value
    ]
    if differ:
        raise ModelError(
            f"{what} was trained with another tokenizer: the one asked for has {', '.join(differ)}; "
            "use the tokenizer of its card."
        )


def _short(value: Any) -> str:
    return f"{value[:12]}..." if isinstance(value, str) and len(value) > 40 else str(value)
