"""A batch as one row of an Arrow table, and back: how batches travel from one process to another.

Pixels are not copied on the way in (the row's buffers are those of the tensors), and once on the way out, into tensors
of the reader's own, which may be pinned; so what carried the row is free again at once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import torch

from histolake.training.reading.augmentation import Drawn
from histolake.training.reading.batch import Batch
from histolake.training.reading.filling import Frame

__all__ = ["pack", "unpack"]


def pack(batch: Batch) -> pa.Table:
    """One row. Columns are the same for all batches of a model's inputs, whatever some rows lack."""
    drawn = batch.drawn
    columns = {
        "step": pa.array([batch.step], pa.int64()),
        "epoch": pa.array([batch.epoch], pa.int64()),
        "genes_surviving": pa.array([batch.genes_surviving], pa.float64()),
        "pair_ids": pa.array([batch.pair_ids], pa.list_(pa.binary())),
        "positions": _cell(batch.positions_B),
        "slides": _cell(batch.slides_B.numpy()),
        "ids": _cell(batch.ids_B.numpy()),
        "neighbours": _cell(None if batch.neighbours_BK is None else batch.neighbours_BK.numpy()),
        "turn": _cell(None if drawn is None else drawn.turn_B.numpy()),
        "mixing": _cell(None if drawn is None or drawn.mixing_BCC is None else drawn.mixing_BCC.numpy()),
    }
    for key, value in batch.tensors.items():
        has_B = batch.present.get(key)
        columns[f"tensor:{key}"] = _cell(value.numpy())
        columns[f"present:{key}"] = _cell(None if has_B is None else has_B.numpy())
    return pa.table(columns)


def unpack(row: pa.Table, frame: Frame) -> Batch:
    """The batch of a row, in tensors of its own."""
    cells = {name: column.combine_chunks()[0] for name, column in zip(row.column_names, row.columns, strict=True)}
    positions_B = _array(cells["positions"], np.int64)
    assert positions_B is not None, "every batch has positions"
    count = len(positions_B)
    tensors = frame.empty(count)
    present: dict[str, torch.Tensor] = {}
    for key, tensor in tensors.items():
        tensor.numpy().reshape(-1).view(np.uint8)[:] = np.frombuffer(cells[f"tensor:{key}"].as_buffer(), dtype=np.uint8)
        has_B = _array(cells[f"present:{key}"], np.bool_)
        if has_B is not None:
            present[key] = torch.from_numpy(has_B)
    turn_B = _array(cells["turn"], np.uint8)
    mixing = _array(cells["mixing"], np.float32)
    neighbours = _array(cells["neighbours"], np.int64)
    drawn = None
    if turn_B is not None:
        mixing_BCC = None if mixing is None else torch.from_numpy(mixing.reshape(count, 3, 3))
        drawn = Drawn(torch.from_numpy(turn_B), mixing_BCC)
    return Batch(
        step=cells["step"].as_py(),
        epoch=cells["epoch"].as_py(),
        positions_B=positions_B,
        pair_ids=cells["pair_ids"].as_py(),
        slides_B=_tensor(cells["slides"]),
        ids_B=_tensor(cells["ids"]),
        tensors=tensors,
        present=present,
        drawn=drawn,
        neighbours_BK=None if neighbours is None else torch.from_numpy(neighbours.reshape(count, -1)),
        genes_surviving=cells["genes_surviving"].as_py(),
    )


def _cell(values: np.ndarray | None) -> pa.Array:
    """A column of one cell, the bytes of an array in its own memory; or null."""
    if values is None:
        return pa.nulls(1, pa.large_binary())
    data = pa.py_buffer(np.ascontiguousarray(values))
    ends = pa.py_buffer(np.array([0, data.size], dtype=np.int64))
    return pa.Array.from_buffers(pa.large_binary(), 1, [None, ends, data])


def _array(cell: Any, dtype: type[np.generic]) -> np.ndarray | None:
    """A copy of what `_cell` was given, flat; None for null."""
    return np.frombuffer(cell.as_buffer(), dtype=dtype).copy() if cell.is_valid else None


def _tensor(cell: Any) -> torch.Tensor:
    values = _array(cell, np.int64)
    assert values is not None, "every batch has it"
    return torch.from_numpy(values)
