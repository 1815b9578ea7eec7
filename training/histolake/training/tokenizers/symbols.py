"""Whole batches of sentences to token ids, without a loop over tokens.

The same few thousand symbols come back in every sentence, so each is turned into its ids once and kept in flat arrays;
a batch is then a look-up of all its symbols and a gather. What remains in Python is one dictionary look-up a symbol.

Axes: N sentences, L tokens, W the words (symbols) of all sentences in a row, K the symbols known so far, T their ids.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from itertools import chain

import numpy as np

from histolake.training.tokenizers.base import PAD

__all__ = ["SymbolTable"]

# Free text can bring words without end; when this many have been seen, remembering starts anew.
MOST_SYMBOLS = 200_000


class SymbolTable:
    """Remembers the ids of symbols and lays sentences out in rows. Threads may share it."""

    def __init__(
        self,
        encode: Callable[[str], Sequence[int]],
        *,
        start: int,
        end: int,
        unknown: int | None = None,
        most: int = MOST_SYMBOLS,
    ) -> None:
        """`encode` gives a symbol's ids; a symbol whose only id is `unknown` tells the encoder nothing. About `most`
        symbols are remembered."""
        self._most = most
        self._encode = encode
        self._start = start
        self._end = end
        self._unknown = unknown
        self._lock = threading.Lock()
        self._forget()

    def _forget(self) -> None:
        self._number: dict[str, int] = {}
        self._ids_T = np.zeros(0, dtype=np.int64)
        self._first_K = np.zeros(0, dtype=np.int64)  # where a symbol's ids start in T
        self._length_K = np.zeros(0, dtype=np.int64)
        self._told_K = np.zeros(0, dtype=bool)

    def rows(self, sentences: Sequence[str | None], context: int) -> np.ndarray:
        """int64 (N, context): start, as many ids as fit, end, padding; None is all padding."""
        tokens_NL = np.full((len(sentences), context), PAD, dtype=np.int64)
        if not sentences:
            return tokens_NL
        words, count_N = _split(sentences)
        ids_T, first_W, length_W, _ = self._look_up(words)
        room = context - 2
        row_W, begin_W = _places(length_W, count_N)
        fits_W = np.minimum(length_W, room - begin_W)  # ids of each symbol that fit, negative where none does
        kept = np.flatnonzero(fits_W > 0)
        fits_K = fits_W[kept]
        # Each id's place within its symbol: a count that starts anew at every symbol.
        within = np.arange(int(fits_K.sum())) - np.repeat(np.cumsum(fits_K) - fits_K, fits_K)
        target = np.repeat(row_W[kept] * context + 1 + begin_W[kept], fits_K) + within
        tokens_NL.reshape(-1)[target] = ids_T[np.repeat(first_W[kept], fits_K) + within]
        said_N = np.fromiter((sentence is not None for sentence in sentences), dtype=bool, count=len(sentences))
        held_N = np.minimum(np.bincount(row_W, weights=length_W, minlength=len(sentences)).astype(np.int64), room)
        tokens_NL[said_N, 0] = self._start
        tokens_NL[np.flatnonzero(said_N), held_N[said_N] + 1] = self._end
        return tokens_NL

    def surviving(self, sentences: Sequence[str | None], context: int) -> float:
        """Mean number of symbols of a sentence that are whole in its row, and not unknown; NaN for no sentences."""
        given = [sentence for sentence in sentences if sentence is not None]
        if not given:
            return float("nan")
        words, count_N = _split(given)
        _, _, length_W, told_W = self._look_up(words)
        _, begin_W = _places(length_W, count_N)
        whole_W = (begin_W + length_W <= context - 2) & told_W
        return float(whole_W.sum() / len(given))

    def _look_up(self, words: list[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """All ids known (T), and for each word where its own begin, how many they are, whether they tell anything."""
        with self._lock:
            try:
                number_W = self._numbers(words)
            except KeyError:
                self._learn(words)
                number_W = self._numbers(words)
            return self._ids_T, self._first_K[number_W], self._length_K[number_W], self._told_K[number_W]

    def _numbers(self, words: list[str]) -> np.ndarray:
        return np.fromiter(map(self._number.__getitem__, words), dtype=np.int64, count=len(words))

    def _learn(self, words: list[str]) -> None:
        if len(self._number) > self._most:
            self._forget()
        new = [word for word in dict.fromkeys(words) if word not in self._number]
        ids = [tuple(self._encode(word)) for word in new]
        length_K = np.array([len(one) for one in ids], dtype=np.int64)
        told_K = np.array([one != (self._unknown,) for one in ids], dtype=bool)
        first_K = len(self._ids_T) + np.cumsum(length_K) - length_K
        # Arrays are replaced, never written to: another thread may still read the old ones.
        self._ids_T = np.concatenate([self._ids_T, np.array(list(chain.from_iterable(ids)), dtype=np.int64)])
        self._first_K = np.concatenate([self._first_K, first_K])
        self._length_K = np.concatenate([self._length_K, length_K])
        self._told_K = np.concatenate([self._told_K, told_K])
        self._number.update(zip(new, range(len(self._number), len(self._number) + len(new)), strict=True))


def _split(sentences: Sequence[str | None]) -> tuple[list[str], np.ndarray]:
    """All words in a row, and how many each sentence has."""
    parts = [sentence.split() if sentence else [] for sentence in sentences]
    return list(chain.from_iterable(parts)), np.fromiter(map(len, parts), dtype=np.int64, count=len(parts))


def _places(length_W: np.ndarray, count_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each word's sentence, and the ids that stand before it in that sentence."""
    before_W = np.cumsum(length_W) - length_W
    row_W = np.repeat(np.arange(len(count_N)), count_N)
    first_N = np.cumsum(count_N) - count_N
    # A sentence without words takes nothing from this, so any index does for it.
    base_N = before_W[np.minimum(first_N, max(len(before_W) - 1, 0))] if len(before_W) else np.zeros_like(first_N)
    return row_W, before_W - np.repeat(base_N, count_N)
