"""Memory of batches that nobody holds any more, given out again.

Ten megabytes that are asked for anew come as pages that the kernel clears first, one by one as they are touched.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from math import prod

import numpy as np
import torch

__all__ = ["Reused"]

MOST = 16  # pieces that are kept; who holds more batches than that gets new memory


def _holders(pieces: Sequence[np.ndarray]) -> list[int]:
    """References to each piece, with those that counting makes."""
    return [sys.getrefcount(piece) for piece in pieces]


(FREE,) = _holders([np.empty(1)])  # of a piece that only a list holds, in this version of Python


class Reused:
    """Pieces of memory as tensors. One thread asks; any may hold and drop what it got."""

    def __init__(self) -> None:
        self._pieces: list[np.ndarray] = []

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """A tensor that is not filled in. Its memory is given out again when the last tensor that shares it is gone."""
        size = prod(shape) * dtype.itemsize
        for number, holders in enumerate(_holders(self._pieces)):
            if holders == FREE and self._pieces[number].nbytes == size:
                piece = self._pieces[number]
                break
        else:
            piece = np.empty(size, dtype=np.uint8)
            if len(self._pieces) < MOST:
                self._pieces.append(piece)
        return torch.from_numpy(piece).view(dtype).view(*shape)
