"""Gene sentences: symbols by falling expression (OmiCLIP's text).

Genes that every cell expresses say little about a spot and would fill its sentence, so mitochondrial and ribosomal
genes are left out by a pattern and housekeeping genes by a list (`housekeeping.py`; ST-bank leaves them out too, but
its list is not published). The stored counts keep them all.

Axes: N spots, G genes.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["SentenceSettings", "gene_sentences"]

ROWS = 1 << 14  # spots sorted at once
SYMBOL_BITS = 18  # genes a matrix may have, as a power of two


@dataclass(frozen=True, kw_only=True)
class SentenceSettings:
    """What a gene sentence holds."""

    length: int = 50  # symbols a sentence (OmiCLIP)
    # genes left out beside the pattern: "shipped", "" for none, or the path or URI of a list with one symbol a line
    housekeeping: str = "shipped"
    exclude: str = r"MT-.+|RPL\d+[AXL]?\d*|RPS\d+[AXYL]?\d*|RPLP[012]|RPSA"  # symbols left out; "" keeps all


def gene_sentences(
    counts_NG: Any, symbols: Sequence[str], settings: SentenceSettings, leave_out: Collection[str] = ()
) -> list[str]:
    """One sentence a row of a sparse (N, G) matrix of counts or of sums of counts.

    Symbols by falling value, equal values by symbol, single spaces between; no gene without a count, none that matches
    `settings.exclude` or that `leave_out` names (in capitals: `housekeeping.left_out`), at most `settings.length`
    genes; "" for a row that has none.
    """
    words = np.asarray(symbols, dtype=object)
    if len(words) >= 1 << SYMBOL_BITS:
        raise ValueError(f"{len(words)} genes; a sentence can rank at most {(1 << SYMBOL_BITS) - 1}.")
    order_G = sorted(range(len(words)), key=lambda g: words[g])
    rank_G = np.empty(len(words), dtype=np.uint64)
    rank_G[order_G] = np.arange(len(words), dtype=np.uint64)
    pattern = re.compile(settings.exclude or "(?!)", re.IGNORECASE)  # "(?!)" matches nothing
    told_G = np.fromiter(
        (pattern.fullmatch(word) is None and word.upper() not in leave_out for word in words),
        dtype=bool,
        count=len(words),
    )
    by_rank = words[order_G]
    out: list[str] = []
    for start in range(0, counts_NG.shape[0], ROWS):
        block = counts_NG[start : start + ROWS]
        out += [" ".join(by_rank[top]) for top in _top_ranks(block, rank_G, told_G, settings.length)]
    return out


def _top_ranks(counts_NG: Any, rank_G: np.ndarray, told_G: np.ndarray, length: int) -> Iterator[np.ndarray]:
    """For each row, the symbol ranks of its highest genes, best first.

    Of each row only the genes that may be among its highest are sorted: those no lower than the last of them. Row,
    value and symbol are packed into one 64-bit number, so that one plain sort orders all rows at once. The bits of a
    positive float32 order as the float does; flipped, they order from high to low.
    """
    n = counts_NG.shape[0]
    row = np.repeat(np.arange(n, dtype=np.uint64), np.diff(counts_NG.indptr))
    use = (counts_NG.data > 0) & told_G[counts_NG.indices]
    use[use] = _may_be_highest(counts_NG.data[use], np.concatenate([[0], np.cumsum(use)])[counts_NG.indptr], length)
    row, gene = row[use], counts_NG.indices[use]
    falling = (~counts_NG.data[use].astype(np.float32).view(np.uint32)).astype(np.uint64)
    key = (row << np.uint64(32 + SYMBOL_BITS)) | (falling << np.uint64(SYMBOL_BITS)) | rank_G[gene]
    key.sort()
    starts = np.searchsorted(key, np.arange(n + 1, dtype=np.uint64) << np.uint64(32 + SYMBOL_BITS))
    ranks = (key & np.uint64((1 << SYMBOL_BITS) - 1)).astype(np.int64)
    for i in range(n):
        yield ranks[starts[i] : min(starts[i + 1], starts[i] + length)]


def _may_be_highest(values: np.ndarray, starts: np.ndarray, length: int) -> np.ndarray:
    """Which values of each row (`starts[i]` to `starts[i + 1]`) are no lower than its `length`-th highest."""
    may = np.ones(len(values), dtype=bool)
    for i in np.flatnonzero(np.diff(starts) > length):
        mine = values[starts[i] : starts[i + 1]]
        may[starts[i] : starts[i + 1]] = mine >= np.partition(mine, -length)[-length]
    return may
