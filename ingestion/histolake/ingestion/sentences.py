"""Gene sentences: symbols by falling expression (OmiCLIP's text).

Genes that every cell expresses say little about a spot and would fill its sentence, so mitochondrial and ribosomal
genes are left out by a pattern and housekeeping genes by a list (`housekeeping.py`; ST-bank leaves them out too, but
its list is not published). The stored counts keep them all.

Axes: N spots, G genes.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

__all__ = ["GeneSentences", "SentenceSettings", "gene_sentences"]

SYMBOL_BITS = 18  # genes a matrix may have, as a power of two
FAINT = 0.5  # a guess at or below this is not lowered any more; all genes are looked at


@dataclass(frozen=True, kw_only=True)
class SentenceSettings:
    """What a gene sentence holds."""

    length: int = 50  # symbols a sentence (OmiCLIP)
    # genes left out beside the pattern: "shipped", "" for none, or the path or URI of a list with one symbol a line
    housekeeping: str = "shipped"
    exclude: str = r"MT-.+|RPL\d+[AXL]?\d*|RPS\d+[AXYL]?\d*|RPLP[012]|RPSA"  # symbols left out; "" keeps all


class GeneSentences:
    """Writes sentences over one list of genes: symbols by falling value, equal values by symbol, single spaces between.

    No gene without a count is told, none that matches `settings.exclude` or that `leave_out` names (in capitals:
    `housekeeping.left_out`), and at most `settings.length` genes.
    """

    def __init__(self, symbols: Sequence[str], settings: SentenceSettings, leave_out: Collection[str] = ()) -> None:
        words = np.asarray(symbols, dtype=object)
        if len(words) >= 1 << SYMBOL_BITS:
            raise ValueError(f"{len(words)} genes; a sentence can rank at most {(1 << SYMBOL_BITS) - 1}.")
        order_G = sorted(range(len(words)), key=lambda g: words[g])
        self._by_rank = words[order_G]
        self._rank_G = np.empty(len(words), dtype=np.uint64)
        self._rank_G[order_G] = np.arange(len(words), dtype=np.uint64)
        pattern = re.compile(settings.exclude or "(?!)", re.IGNORECASE)  # "(?!)" matches nothing
        told = (pattern.fullmatch(word) is None and word.upper() not in leave_out for word in words)
        self._told_G = np.fromiter(told, dtype=bool, count=len(words))
        self._length = settings.length

    def __call__(self, counts_NG: Any) -> list[str]:
        """One sentence a row of a sparse (N, G) matrix; "" for a row that has none."""
        values = counts_NG.data.astype(np.float32, copy=False)
        runs = (slice(*ends) for ends in pairwise(counts_NG.indptr.tolist()))
        return self._sentences((values[run], counts_NG.indices[run]) for run in runs)

    def of_sums(self, sums_G: Iterable[np.ndarray]) -> list[str]:
        """One sentence an array of a value a gene, float32 (G,), such as the sum of some spots' counts."""
        genes = np.arange(len(self._told_G))
        return self._sentences((values, genes) for values in sums_G)

    def _sentences(self, rows: Iterable[tuple[np.ndarray, np.ndarray]]) -> list[str]:
        least, out = np.float32(0), []
        for values, genes in rows:
            sentence, least = self._sentence(values, genes, least)
            out.append(sentence)
        return out

    def _sentence(self, values: np.ndarray, genes: np.ndarray, guess: np.float32) -> tuple[str, np.float32]:
        """A row's sentence, and the value of its last gene, which is a good guess for the next row's.

        Only genes that may be among the highest are sorted. Value and symbol are packed into one number for it. The
        bits of a positive float32 order as the float does; flipped, they order from high to low.
        """
        high = self._high(values, genes, guess)
        falling = (~values[high].view(np.uint32)).astype(np.uint64)
        key = (falling << np.uint64(SYMBOL_BITS)) | self._rank_G[genes[high]]
        key.sort()
        told = key[: self._length]
        last = ~(told[-1:] >> np.uint64(SYMBOL_BITS)).astype(np.uint32)
        ranks = (told & np.uint64((1 << SYMBOL_BITS) - 1)).astype(np.int64)
        return " ".join(self._by_rank[ranks]), last.view(np.float32).max(initial=0)

    def _high(self, values: np.ndarray, genes: np.ndarray, guess: np.float32) -> np.ndarray:
        """Where in a row the genes are that may be told: all, or at least as many as are told and none that is lower
        than one left out. The guess is lowered until it is low enough, so that it costs a pass and no sort."""
        while guess > 0:
            high = np.flatnonzero(values >= guess)
            high = high[self._told_G[genes[high]]]
            if len(high) >= self._length:
                return high
            guess = guess / 2 if guess > FAINT else np.float32(0)
        high = np.flatnonzero(values > 0)
        return high[self._told_G[genes[high]]]


def gene_sentences(
    counts_NG: Any, symbols: Sequence[str], settings: SentenceSettings, leave_out: Collection[str] = ()
) -> list[str]:
    """One sentence a row of a sparse (N, G) matrix, as `GeneSentences` writes it."""
    return GeneSentences(symbols, settings, leave_out)(counts_NG)
