"""Images that lie inside another file, as files of their own.

An `.h5ad` file may hold its image as an array. Regions are cut from files, so the array is written once, block by
block, as a tiled TIFF without loss. The copy lies in the cache of this machine, beside the copies of remote files, and
is named by its content: every worker that reads the section finds or makes the same one. It is the slide's image in the
catalogue, and as it holds pixels of a patient's tissue, forgetting the slide drops it too.
"""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from histolake.platform.cache import cache_folder, trim, use
from histolake.platform.storage import Location

__all__ = ["write_copy"]

BLOCK_BYTES = 16 << 20


def write_copy(pixels: Any) -> Path:
    """A TIFF with the pixels of an array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4): whole numbers, or fractions of 1.
    `pixels` may be a dataset on disk: it is read in blocks of rows."""
    import pyvips

    height, width = pixels.shape[:2]
    bands = pixels.shape[2] if len(pixels.shape) == 3 else 1
    rows = max(1, BLOCK_BYTES // max(width * bands, 1))
    white = _white(pixels, rows)
    content = hashlib.sha256(f"{width} {height} {bands}\0".encode())
    folder = cache_folder("embedded")
    with tempfile.TemporaryDirectory(dir=folder, prefix=".writing-") as work:
        raw = Path(work) / "pixels"
        with raw.open("wb") as stream:
            for start in range(0, height, rows):
                block = _as_bytes(np.asarray(pixels[start : start + rows]), white)
                content.update(block)
                stream.write(block)
        target = folder / f"{content.hexdigest()[:24]}.tif"
        if not use(target):
            made = Path(work) / "image.tif"
            image = pyvips.Image.rawload(str(raw), width, height, bands)
            image = image.copy(interpretation="srgb" if bands >= 3 else "b-w")
            image.tiffsave(str(made), tile=True, compression="deflate", predictor="horizontal")
            made.replace(target)
    trim(Location.parse(target).store.cache_gb)
    return target


def _white(pixels: Any, rows: int) -> float:
    """The value that stands for white: 1 of fractions, 255 of bytes, 65,535 of an array that goes beyond them."""
    if pixels.dtype == np.uint8:
        return 255.0
    top = max(float(np.max(pixels[start : start + rows])) for start in range(0, pixels.shape[0], rows))
    if pixels.dtype.kind == "f" and top <= 1.0:
        return 1.0
    return 255.0 if top <= 255 else 65535.0


def _as_bytes(block: np.ndarray, white: float) -> bytes:
    if block.dtype != np.uint8:
        block = np.rint(np.clip(block.astype(np.float32) / white, 0.0, 1.0) * 255).astype(np.uint8)
    return np.ascontiguousarray(block).tobytes()
