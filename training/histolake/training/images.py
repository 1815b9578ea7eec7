"""Pictures to pixels: JPEG or PNG bytes to RGB uint8 of the width that a model takes.

Axes: H height, W width, C channels (RGB). Pixels are uint8 until a model asks for its own numbers.
"""

from __future__ import annotations

import io

import numpy as np

from histolake.platform.errors import ModelError

__all__ = ["decode", "decode_into"]

JPEG_MAGIC = b"\xff\xd8\xff"


def decode(picture: bytes | memoryview, px: int) -> np.ndarray:
    """RGB uint8 (px, px, 3) of a JPEG or PNG; a picture of another size is resized, antialiased (Pillow's bicubic).

    Raises `ModelError` for bytes that are no picture.
    """
    image_HWC = np.empty((px, px, 3), dtype=np.uint8)
    decode_into(picture, image_HWC)
    return image_HWC


def decode_into(picture: bytes | memoryview, into_HWC: np.ndarray) -> None:
    """The same, into an array (px, px, 3) that lies in one piece: a JPEG of that width is decoded straight into it."""
    import simplejpeg

    px = len(into_HWC)
    try:
        if picture[:3] == JPEG_MAGIC and simplejpeg.decode_jpeg_header(picture)[:2] == (px, px):
            simplejpeg.decode_jpeg(picture, colorspace="RGB", buffer=into_HWC)
        else:
            into_HWC[:] = _resized(picture, px)
    except (ValueError, OSError) as error:  # simplejpeg's and Pillow's own are of these
        raise ModelError(f"{len(picture)} bytes are no JPEG or PNG that can be decoded ({error}).") from error


def _resized(picture: bytes | memoryview, px: int) -> np.ndarray:
    import simplejpeg
    from PIL import Image

    if picture[:3] == JPEG_MAGIC:
        image = Image.fromarray(simplejpeg.decode_jpeg(picture, colorspace="RGB"))
    else:
        image = Image.open(io.BytesIO(picture)).convert("RGB")
    return np.asarray(image.resize((px, px), Image.Resampling.BICUBIC))
