"""Gene sentences: symbols by falling expression (OmiCLIP's text).

Genes that every cell expresses say little about a spot and would fill its sentence, so mitochondrial and ribosomal
genes are left out by a pattern and housekeeping genes by a list (`housekeeping.py`; ST-bank leaves them out too, but
its list is not published). The stored counts keep them all.

Axes: N spots, G genes.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

__all__ = ["GeneSentences", "SentenceSettings", "gene_sentences"]

SYMBOL_BITS = 18  # genes a matrix may have, as a power of two


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
        self._told_G = np.fromiter(told, dtype=np.float32, count=len(words))
        self._length = settings.length

    def __call__(self, counts_NG: Any) -> list[str]:
        """One sentence a row of a sparse (N, G) matrix of counts or of sums of counts; "" for a row that has none."""
        values = counts_NG.data.astype(np.float32, copy=False)
        starts = counts_NG.indptr.tolist()
        runs = (slice(*ends) for ends in pairwise(starts))
        return [self._sentence(values[run], counts_NG.indices[run]) for run in runs]

    def _sentence(self, values: np.ndarray, genes: np.ndarray) -> str:
        """Only the genes that may be among the highest are sorted: those no lower than the last of them. Value and
        symbol are packed into one number for it. The bits of a positive float32 order as the float does; flipped, they
        order from high to low."""
        values = values * self._told_G[genes]
        least = np.partition(values, -self._length)[-self._length] if len(values) > self._length else 0
        highest = np.flatnonzero(values >= least if least > 0 else values > 0)
        falling = (~values[highest].view(np.uint32)).astype(np.uint64)
        key = (falling << np.uint64(SYMBOL_BITS)) | self._rank_G[genes[highest]]
        key.sort()
        return " ".join(self._by_rank[(key[: self._length] & np.uint64((1 << SYMBOL_BITS) - 1)).astype(np.int64)])


def gene_sentences(
    counts_NG: Any, symbols: Sequence[str], settings: SentenceSettings, leave_out: Collection[str] = ()
) -> list[str]:
    """One sentence a row of a sparse (N, G) matrix, as `GeneSentences` writes it."""
    return GeneSentences(symbols, settings, leave_out)(counts_NG)
