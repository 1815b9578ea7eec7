"""Overviews: a whole image made small without ever being in memory.

An image is read block by block, each block averaged over squares of whole pixels, and only the small rest is resized.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

__all__ = ["fitted", "shrunk"]

BLOCK_PX = 2048  # side of the blocks that are read, at most


def fitted(size_px: tuple[int, int], max_px: int) -> tuple[int, int]:
    """Width and height with the longest side `max_px` at most; a small image is not enlarged."""
    factor = min(1.0, max_px / max(size_px))
    return max(1, round(size_px[0] * factor)), max(1, round(size_px[1] * factor))


def shrunk(
    read: Callable[[int, int, int, int], np.ndarray], size_px: tuple[int, int], target_px: tuple[int, int]
) -> np.ndarray:
    """The image of `size_px` that `read` (x, y, width, height) gives, as uint8 of `target_px` (H, W, 3)."""
    from PIL import Image

    width, height = size_px
    factor = max(1, min(width // target_px[0], height // target_px[1]))
    block = max(factor, BLOCK_PX // factor * factor)
    small = np.empty((-(-height // factor), -(-width // factor), 3), dtype=np.uint8)
    for y in range(0, height, block):
        for x in range(0, width, block):
            piece = _averaged(read(x, y, min(block, width - x), min(block, height - y)), factor)
            top, left = y // factor, x // factor
            small[top : top + piece.shape[0], left : left + piece.shape[1]] = piece
    if small.shape[1::-1] == target_px:
        return small
    # The last row and column of `small` may stand for less than a whole square.
    box = (0.0, 0.0, width / factor, height / factor)
    return np.asarray(Image.fromarray(small).resize(target_px, Image.Resampling.LANCZOS, box=box))


def _averaged(piece_HWC: np.ndarray, factor: int) -> np.ndarray:
    from PIL import Image

    return piece_HWC if factor == 1 else np.asarray(Image.fromarray(piece_HWC).reduce(factor))
