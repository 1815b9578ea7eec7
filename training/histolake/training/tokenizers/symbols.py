"""Whole batches of sentences to token ids, without a loop over tokens.

The same few thousand symbols come back in every sentence, so each is turned into its ids once and kept in flat arrays;
a batch is then a look-up of all its symbols and a gather. What remains in Python is one dictionary look-up a symbol; of
sentences that come as an Arrow array, as the lake holds them, one for each different symbol.

Axes: N sentences, L tokens, W the words (symbols) of all sentences in a row, K the symbols known so far, T their ids.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

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
        return self.counted(sentences, context)[0]

    def surviving(self, sentences: Sequence[str | None], context: int) -> float:
        """Mean number of symbols of a sentence that are whole in its row, and not unknown; NaN for no sentences."""
        given = [sentence for sentence in sentences if sentence is not None]
        return float(self.counted(given, context)[1].mean()) if given else float("nan")

    def counted(self, sentences: Sequence[str | None] | Any, context: int) -> tuple[np.ndarray, np.ndarray]:
        """The rows, and how many symbols of each sentence are whole in its row and not unknown, int64 (N,).
        `sentences` may be an Arrow array of strings."""
        sentences_N = len(sentences)
        tokens_NL = np.full((sentences_N, context), PAD, dtype=np.int64)
        if not sentences_N:
            return tokens_NL, np.zeros(0, dtype=np.int64)
        words, which_W, count_N, said_N = _split(sentences)
        ids_T, first_W, length_W, told_W = self._look_up(words, which_W)
        room = context - 2
        row_W, begin_W = _places(length_W, count_N)
        fits_W = np.minimum(length_W, room - begin_W)  # ids of each symbol that fit, negative where none does
        kept = np.flatnonzero(fits_W > 0)
        fits_K = fits_W[kept]
        before_K = np.cumsum(fits_K) - fits_K
        # The ids of all kept symbols in a row: each symbol's place in the batch and in the table, less those before it.
        each = np.arange(int(fits_K.sum()))
        target = np.repeat(row_W[kept] * context + 1 + begin_W[kept] - before_K, fits_K)
        source = np.repeat(first_W[kept] - before_K, fits_K)
        tokens_NL.reshape(-1)[target + each] = ids_T[source + each]
        ids_N = np.bincount(row_W, weights=length_W, minlength=sentences_N).astype(np.int64)
        tokens_NL[said_N, 0] = self._start
        tokens_NL[np.flatnonzero(said_N), np.minimum(ids_N, room)[said_N] + 1] = self._end
        whole_W = (fits_W == length_W) & told_W
        return tokens_NL, np.bincount(row_W[whole_W], minlength=sentences_N)

    def _look_up(
        self, words: list[str], which_W: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """All ids known (T), and for each word where its own begin, how many they are, whether they tell anything.
        `which_W` says which of `words` each word is; None: they are all words, one after the other."""
        with self._lock:
            try:
                number_W = self._numbers(words)
            except KeyError:
                self._learn(words)
                number_W = self._numbers(words)
            if which_W is not None:
                number_W = number_W[which_W]
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


def _split(sentences: Any) -> tuple[list[str], np.ndarray | None, np.ndarray, np.ndarray]:
    """Of a sequence of strings or an Arrow array: the words, which of them each is (None: one after the other), how
    many each sentence has, and whether there is a sentence at all."""
    if hasattr(sentences, "dictionary_encode"):
        import pyarrow.compute as pc

        parts = pc.utf8_split_whitespace(sentences)
        encoded = parts.flatten().dictionary_encode()
        words = encoded.dictionary.to_pylist()
        if "" not in words:  # as it is where spaces are doubled or nothing is said; then as Python splits
            count_N = parts.value_lengths().fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
            said_N = sentences.is_valid().to_numpy(zero_copy_only=False)
            return words, encoded.indices.to_numpy(zero_copy_only=False), count_N, said_N
        sentences = sentences.to_pylist()
    listed = [sentence.split() if sentence else [] for sentence in sentences]
    count_N = np.fromiter(map(len, listed), dtype=np.int64, count=len(listed))
    said_N = np.fromiter((sentence is not None for sentence in sentences), dtype=bool, count=len(listed))
    return list(chain.from_iterable(listed)), None, count_N, said_N


def _places(length_W: np.ndarray, count_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each word's sentence, and the ids that stand before it in that sentence."""
    before_W = np.cumsum(length_W) - length_W
    row_W = np.repeat(np.arange(len(count_N)), count_N)
    first_N = np.cumsum(count_N) - count_N
    # A sentence without words takes nothing from this, so any index does for it.
    base_N = before_W[np.minimum(first_N, max(len(before_W) - 1, 0))] if len(before_W) else np.zeros_like(first_N)
    return row_W, before_W - np.repeat(base_N, count_N)
