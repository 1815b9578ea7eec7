"""The loop that peers run, and that the ingest is compared with.

It stands for the scripts by which cohorts of histology with expression are usually cut (HEST's `dump_patches`, and
those of many papers after it): one process goes over the spots in the order of their file; for each it asks OpenSlide
for a region, drops the transparency, reduces the picture by Pillow and appends it to chunked datasets of an HDF5 file.
It is written here in their manner; no line of it is theirs.

What comes out is what the ingest writes of the pictures, and nothing else: a spot's patch and its niche's, of the same
widths, reduced by the same filter (bicubic, antialiased; here as Pillow has it) and encoded as JPEG of the same
quality. No counts are read, no sentence is written and nothing is checked: the ingest does more in its time.
"""

from __future__ import annotations

import io
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["run_peer_loop"]

CHUNK = 64  # rows


def run_peer_loop(
    image: Path, xy_px: Iterable[tuple[float, float]], sides: tuple[int, int], *, max_px: int, quality: int, out: Path
) -> tuple[int, float]:
    """Cut the patches of all spots; how many pairs were written, and in how many seconds."""
    import h5py

    began = time.perf_counter()
    n = 0
    slide = _opened(image)
    with h5py.File(out, "w") as file:
        jpeg = h5py.vlen_dtype(np.uint8)
        columns = [
            file.create_dataset(name, (0,), maxshape=(None,), chunks=(CHUNK,), dtype=jpeg) for name in ("spot", "niche")
        ]
        for x, y in xy_px:
            for column, side in zip(columns, sides, strict=True):
                column.resize(n + 1, axis=0)
                column[n] = np.frombuffer(_patch(slide, x, y, side, max_px, quality), np.uint8)
            n += 1
    slide.close()
    return n, time.perf_counter() - began


def _opened(image: Path) -> Any:
    """A slide by OpenSlide; a plain picture, which OpenSlide does not know, by Pillow, whole in memory."""
    import openslide

    return openslide.open_slide(str(image)) if openslide.OpenSlide.detect_format(str(image)) else _Picture(image)


class _Picture:
    """A plain picture with OpenSlide's way to ask for a region."""

    def __init__(self, path: Path) -> None:
        from PIL import Image

        Image.MAX_IMAGE_PIXELS = None
        self._picture = Image.open(path)
        self._picture.load()

    def read_region(self, corner: tuple[int, int], _level: int, size: tuple[int, int]) -> Any:
        """The region as a picture of Pillow's."""
        return self._picture.crop((*corner, corner[0] + size[0], corner[1] + size[1]))

    def close(self) -> None:
        """Close the file."""
        self._picture.close()


def _patch(slide: Any, x: float, y: float, side: int, max_px: int, quality: int) -> bytes:
    from PIL import Image

    corner = int(np.floor(x - side / 2 + 0.5)), int(np.floor(y - side / 2 + 0.5))
    picture = slide.read_region(corner, 0, (side, side)).convert("RGB")
    if side > max_px:
        picture = picture.resize((max_px, max_px), Image.Resampling.BICUBIC)
    packed = io.BytesIO()
    picture.save(packed, format="JPEG", quality=quality, subsampling="4:2:0")
    return packed.getvalue()
