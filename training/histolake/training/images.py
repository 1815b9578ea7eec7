"""Pictures to pixels, and what is drawn at random about them.

Axes: B pictures, H height, W width, C channels (RGB). Pixels are uint8 until a model asks for its own numbers.

Augmentation is a function of (seed, epoch, position in the epoch): the same pair is changed in the same way however
many workers share the work, and after a resume.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from histolake.platform.errors import ModelError

__all__ = ["Augmentation", "augment", "decode"]

JPEG_MAGIC = b"\xff\xd8\xff"

# Optical density of haematoxylin, eosin and what is left (Ruifrok and Johnston 2001), rows of unit length.
STAINS_33 = np.array([[0.650, 0.704, 0.286], [0.072, 0.990, 0.105], [0.268, 0.570, 0.776]])


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """What may be drawn about a picture."""

    flips: bool = True  # flips and quarter turns: tissue has no up
    stain: float = 0.0  # standard deviation of the log gain of each stain, dimensionless
    density: float = 0.0  # relative standard deviation of the whole optical density, dimensionless


def decode(picture: bytes, px: int) -> np.ndarray:
    """RGB uint8 (px, px, 3) of a JPEG or PNG; a picture of another size is resized, antialiased.

    Raises `ModelError` for bytes that are no picture.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        if picture[:3] == JPEG_MAGIC:
            import simplejpeg

            image_HWC = simplejpeg.decode_jpeg(picture, colorspace="RGB")
        else:
            image_HWC = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"))
    except (ValueError, OSError, UnidentifiedImageError) as error:
        raise ModelError(f"{len(picture)} bytes are no JPEG or PNG that can be decoded ({error}).") from error
    if image_HWC.shape[:2] != (px, px):
        image_HWC = np.asarray(Image.fromarray(image_HWC).resize((px, px), Image.Resampling.BICUBIC))
    return image_HWC


def augment(
    images_BHWC: Sequence[np.ndarray], options: Augmentation, *, seed: int, epoch: int, positions: Sequence[int]
) -> np.ndarray:
    """The pictures changed as drawn for their positions, uint8 (B, H, W, C)."""
    out = []
    for image_HWC, position in zip(images_BHWC, positions, strict=True):
        draw = np.random.Generator(np.random.Philox(key=[seed, (epoch << 40) + position]))
        turns, flip = draw.integers(4), draw.integers(2)
        gain_3, shift = draw.normal(size=3), draw.normal()
        if options.flips:
            image_HWC = np.rot90(image_HWC, int(turns))
            image_HWC = image_HWC[:, ::-1] if flip else image_HWC
        if options.stain or options.density:
            image_HWC = _restain(image_HWC, np.exp(options.stain * gain_3), options.density * shift)
        out.append(np.ascontiguousarray(image_HWC))
    return np.stack(out)


def _restain(image_HWC: np.ndarray, gain_3: np.ndarray, shift: float) -> np.ndarray:
    """Scale each stain's optical density and shift the whole; white stays nearly white."""
    mixing_CC = (np.linalg.inv(STAINS_33) * gain_3) @ STAINS_33
    density_HWC = _DENSITY[image_HWC]
    density_HWC = density_HWC @ mixing_CC.astype(np.float32)
    return np.clip(255.0 * np.exp(-(density_HWC * np.float32(1 + shift))), 0, 255).astype(np.uint8)


# -log(v / 255), with black held one step away from infinity.
_DENSITY = -np.log(np.maximum(np.arange(256), 1) / 255.0).astype(np.float32)
