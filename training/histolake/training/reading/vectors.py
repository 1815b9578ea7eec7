"""Vectors of a table of embeddings beside the pairs: what a frozen gene encoder made of them.

Axes: P rows of a window, W numbers of a vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from histolake.platform.errors import LakeError, ModelError
from histolake.platform.lake import Chunk
from histolake.training.inputs import Vector

__all__ = ["VectorReader"]


class VectorReader:
    """Reads a table that holds an ingest's vectors in the order of its pairs, as `histolake embed` writes them."""

    def __init__(self, snapshot: Any, wanted: Vector) -> None:
        self._table = snapshot.lake.embeddings.open(wanted.table)
        width = self._table.about.width
        if width != wanted.width:
            raise ModelError(
                f"The table {wanted.table} holds vectors of {width} numbers and the model takes {wanted.width}; "
                f"set the model's width to {width}, or name another table."
            )
        self._width = width

    def read(
        self, chunks: Sequence[Chunk], places_P2: np.ndarray, pair_ids: pa.ChunkedArray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Vectors of rows that are named by chunk and row, float32 (P, W), and which rows have one, bool (P,)."""
        view = self._table.view()
        firsts: dict[str, list[tuple[int, int]]] = {}
        for part in view.parts:
            firsts.setdefault(part.ingest_id, []).append((part.first, part.rows))
        found_PW = np.zeros((len(places_P2), self._width), dtype=np.float32)
        has_P = np.zeros(len(places_P2), dtype=bool)
        rows_P = np.full(len(places_P2), -1, dtype=np.int64)
        for number in np.unique(places_P2[:, 0]):
            chunk, mine = chunks[number], places_P2[:, 0] == number
            listed = [np.arange(first, first + rows) for first, rows in firsts.get(chunk.ingest_id, [])]
            if listed:
                rows_P[mine] = np.concatenate(listed)[chunk.start + places_P2[mine, 1]]
        there = np.flatnonzero(rows_P >= 0)
        if not there.size:
            return found_PW, has_P
        wanted, back = np.unique(rows_P[there], return_inverse=True)
        taken = view.dataset.take(wanted.tolist(), columns=["pair_id", "vector"]).take(pa.array(back.ravel()))
        if not taken["pair_id"].combine_chunks().equals(pair_ids.take(pa.array(there)).combine_chunks()):
            raise LakeError(
                f"The vectors of {self._table.name} are not in the order of the pairs; fill the table again "
                "with `histolake embed`."
            )
        vectors = taken["vector"].combine_chunks()
        has_P[there] = vectors.is_valid().to_numpy(zero_copy_only=False)
        found_PW[there] = (
            vectors.fill_null(pa.scalar([0.0] * self._width, vectors.type))
            .flatten()
            .to_numpy()
            .reshape(-1, self._width)
        )
        return found_PW, has_P
