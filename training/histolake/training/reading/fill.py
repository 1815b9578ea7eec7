"""From rows of the lake, undecoded, to rows of a batch: pictures decoded straight into it, sentences as tokens.

Axes: R rows that are filled, H height, W width, C channels, L tokens.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from histolake.training.images import decode_into

__all__ = ["fill_pictures", "fill_tokens"]


def fill_pictures(column: pa.ChunkedArray, into_RHWC: np.ndarray) -> np.ndarray:
    """Decode pictures; gives which rows have one, bool (R,). Raises `ModelError` for bytes that are no picture."""
    has_R = column.is_valid().to_numpy()
    row = 0
    for chunk in column.chunks:
        data, at = _bytes(chunk)
        for start, stop in pairwise(at):
            if has_R[row]:
                decode_into(data[start:stop], into_RHWC[row])
            else:
                into_RHWC[row] = 0
            row += 1
    return has_R


def _bytes(chunk: pa.Array) -> tuple[memoryview, list[int]]:
    """The bytes of an array of binaries, none of them copied, and where each begins and the last ends."""
    wide = np.int64 if pa.types.is_large_binary(chunk.type) else np.int32
    _, offsets, data = chunk.buffers()
    at = np.frombuffer(offsets, dtype=wide)[chunk.offset : chunk.offset + len(chunk) + 1]
    # Arrow's buffers say that their bytes are signed; such a view equals no bytes, whatever it holds.
    return memoryview(data if data is not None else b"").cast("B"), at.tolist()


def fill_tokens(column: pa.ChunkedArray, tokenizer: Any, into_RL: np.ndarray) -> tuple[np.ndarray, int]:
    """Tokenize sentences; gives which rows have one, bool (R,), and how many genes of them survive, added up."""
    sentences = column.combine_chunks()
    said = pc.and_not(pc.greater(pc.binary_length(sentences), 0), pc.utf8_is_space(sentences))
    said_R = said.fill_null(False).to_numpy(zero_copy_only=False)
    into_RL[:], surviving_R = tokenizer.counted(sentences)
    into_RL[~said_R] = 0
    return said_R, int(surviving_R.sum())
