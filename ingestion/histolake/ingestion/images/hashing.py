"""A perceptual hash of a slide's picture: the same image encoded or resized otherwise has nearly the same.

The hash is pHash (Zauner 2010): an image's lowest cosine frequencies, each above or below their median. Where tissue is
a small part of the slide, empty glass makes all slides alike, so such a picture is cut to its tissue first. The cut is
by the mean and spread of colour over the picture, which hardly move when the image is encoded again; a threshold on
colour moved the box of real sections enough to change half of the hash. Sections that fill their picture are not cut.

256 bits, because 64 do not separate enough. Bits that differ, on ten images (HER2ST, mouse olfactory bulb, DLPFC, two
slides) and the simulated cohort:

    encoded again (JPEG quality 95 to 20)               2 to 6     (of 64 bits: 0 to 4)
    resized to 0.7, 0.5, 0.25                           2 to 4                  2
    brightness, contrast, colour changed by 10 to 20%   4 to 16                 0 to 2
    the same, of tissue on a sixteenth of its glass     up to 46, 40 and 132    up to 10, 4 and 20
    adjacent sections of one block, real                92 to 146               14 to 38
    adjacent sections, simulated                        68 to 88                6 to 18
    other pairs                                         90 and more             18 and more

So it tells copies from neighbours. It does not see through a rotation, a flip or a crop.
"""

from __future__ import annotations

import numpy as np

__all__ = ["HASH_BITS", "image_hash", "tissue_box"]

SIDE_PX = 64  # of the picture whose frequencies are taken
LOW = 16  # frequencies a side that are kept
HASH_BITS = LOW * LOW
GLASS_CHROMA = 5  # of 255: largest less smallest colour of empty glass, about
SPREAD = 2.0  # standard deviations of colour on each side of its mean that the box holds
SMALL = 0.25  # fraction of the picture below which it is cut to the box
LEAST_CHROMA = 0.2  # of 255, mean over the picture beyond glass: with less, nothing is there to cut to


def image_hash(overview_HWC: np.ndarray) -> str:
    """The hash of a picture (uint8, RGB): 256 bits, 64 hexadecimal digits. Count the bits that differ."""
    from PIL import Image
    from scipy.fft import dctn

    left, top, right, bottom = tissue_box(overview_HWC)
    grey = Image.fromarray(overview_HWC[top:bottom, left:right]).convert("L")
    small = np.asarray(grey.resize((SIDE_PX, SIDE_PX), Image.Resampling.LANCZOS), dtype=np.float64)
    low = dctn(small)[:LOW, :LOW]
    return np.packbits(low > np.median(low)).tobytes().hex()


def tissue_box(overview_HWC: np.ndarray) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of the tissue where that is a small part of the picture, else of all of it."""
    from PIL import Image

    height, width = overview_HWC.shape[:2]
    factor = max(1, max(width, height) // 256)
    small = np.asarray(Image.fromarray(overview_HWC).reduce(factor)).astype(np.float64)
    weight_HW = np.clip(np.ptp(small, axis=2) - GLASS_CHROMA, 0, None)
    if weight_HW.mean() < LEAST_CHROMA:
        return 0, 0, width, height
    (left, right), (top, bottom) = (
        _span(weight_HW.sum(axis=axis), factor, size) for axis, size in ((0, width), (1, height))
    )
    cut = (right - left) * (bottom - top) < SMALL * width * height
    return (left, top, right, bottom) if cut else (0, 0, width, height)


def _span(weights: np.ndarray, factor: int, size: int) -> tuple[int, int]:
    share = weights / weights.sum()
    centres = (np.arange(len(share)) + 0.5) * factor
    mean = float(share @ centres)
    reach = max(1.0, SPREAD * float(np.sqrt(share @ (centres - mean) ** 2)))
    return max(0, round(mean - reach)), min(size, round(mean + reach))
