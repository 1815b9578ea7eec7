"""One token a gene: all 50 symbols of a sentence fit into 52 tokens.

The vocabulary is a list of symbols, as a rule the lake's. It travels with the model, so that a model never depends on a
lake, and so does its digest, so that a model is never fed by another vocabulary whose ids happen to be in range. What
is traded away: a symbol that the list lacks (an alias, another species) is one `unknown` token, where byte pairs would
have spelled it.

    id              token
    0               padding (open_clip's CoCa hides id 0 from its class token)
    1               unknown
    2 ... G + 1     the genes, in the order of the list
    G + 2, G + 3    start, end: the two highest, where every CLIP text tower looks for them
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from histolake.platform.errors import ModelError
from histolake.training.tokenizers.symbols import SymbolTable

__all__ = ["GENES_CONTEXT", "GeneTokenizer", "digest_of", "lake_symbols"]

GENES_CONTEXT = 52  # tokens: 50 symbols, start and end
UNKNOWN = 1
FIRST_GENE = 2


class GeneTokenizer:
    """A vocabulary of gene symbols as a `Tokenizer`."""

    name = "gene"

    def __init__(self, symbols: Iterable[str | None], context: int = GENES_CONTEXT) -> None:
        """`symbols` is the vocabulary; what stands there twice counts once, what is empty not at all."""
        self.vocabulary = tuple(dict.fromkeys(symbol.strip() for symbol in symbols if symbol and symbol.strip()))
        if not self.vocabulary:
            raise ModelError("A gene tokenizer needs at least one gene symbol; the list that it was given has none.")
        if broken := [symbol for symbol in self.vocabulary if len(symbol.split()) > 1]:
            raise ModelError(
                f"{len(broken)} gene symbols hold a space, such as {broken[0]!r}; a sentence is split at spaces, so "
                "they could never be found: leave them out."
            )
        self.context = context
        self.vocab_size = FIRST_GENE + len(self.vocabulary) + 2
        self.vocabulary_digest = digest_of(self.vocabulary)
        ids = dict(zip(self.vocabulary, range(FIRST_GENE, FIRST_GENE + len(self.vocabulary)), strict=True))
        self._table = SymbolTable(
            lambda symbol: (ids.get(symbol, UNKNOWN),),
            start=self.vocab_size - 2,
            end=self.vocab_size - 1,
            unknown=UNKNOWN,
        )

    def __call__(self, sentences: Sequence[str | None]) -> np.ndarray:
        """Token ids, int64 (N, context): start, genes, end, zeros. A long sentence is cut before its end token."""
        return self._table.rows(sentences, self.context)

    def counted(self, sentences: Sequence[str | None] | Any) -> tuple[np.ndarray, np.ndarray]:
        """The same, and how many symbols of each sentence survive, int64 (N,); also of an Arrow array."""
        return self._table.counted(sentences, self.context)

    def genes_surviving(self, sentences: Sequence[str | None]) -> float:
        """Mean number of a sentence's symbols that fit and that the vocabulary knows; NaN for no sentences."""
        return self._table.surviving(sentences, self.context)

    def card(self) -> dict[str, Any]:
        """Plain JSON with the vocabulary itself and its digest."""
        return {
            "name": self.name,
            "context": self.context,
            "vocab_size": self.vocab_size,
            "vocabulary_digest": self.vocabulary_digest,
            "vocabulary": list(self.vocabulary),
        }


def digest_of(vocabulary: Sequence[str]) -> str:
    """A hash of the symbols in their order."""
    return hashlib.sha256("\n".join(vocabulary).encode()).hexdigest()


def lake_symbols() -> tuple[str, ...]:
    """The symbols of the vocabulary that every lake starts from (GENCODE, see `histolake.platform.lake.genes`), in the
    order of their gene ids. A lake that has allocated genes of its own lists them all in `Lake.genes()`."""
    from histolake.platform.lake.genes import vocabulary

    return tuple(dict.fromkeys(symbol for symbol in vocabulary()["symbol"].to_pylist() if symbol))
