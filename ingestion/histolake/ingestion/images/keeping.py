"""What the lake keeps of a section's image: an overview for people and the report, a pyramid where the source has none.

Both are written under the attempt's `ingest_id`, so they live and die with it.
"""

from __future__ import annotations

from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np

from histolake.ingestion.images.hashing import image_hash
from histolake.ingestion.images.opening import open_image
from histolake.ingestion.images.pyramid import make_pyramid, wants_pyramid
from histolake.ingestion.images.settings import ImageSettings
from histolake.platform.lake.images import LakeImages
from histolake.platform.storage import Location

__all__ = ["keep_overview", "keep_pyramid"]


PART = 0.5  # of the image's area: spots on less of it are one section of several


def keep_overview(
    uri: str, lake: Location, ingest_id: str, settings: ImageSettings, xy_px_N2: np.ndarray | None = None
) -> tuple[str, bool]:
    """Write the overview of the image at a URI; its perceptual hash, and whether it should become a pyramid.

    The hash is of the whole image, or of the part under the spots (their centres given) where that is less than `PART`
    of it: sections that lie on one image are not each other's copies. Raises `SourceError` where the image cannot be
    decoded.
    """
    with closing(open_image(uri)) as image:
        overview_HWC = image.overview(settings.overview_px)
        wanted = wants_pyramid(image, settings)
        size_px = image.size_px
    images = LakeImages(lake)
    images.write(images.picture(ingest_id), partial(_jpeg, overview_HWC, settings.overview_quality))
    return image_hash(_under_spots(overview_HWC, size_px, xy_px_N2)), wanted


def _under_spots(overview_HWC: np.ndarray, size_px: tuple[int, int], xy_px_N2: np.ndarray | None) -> np.ndarray:
    height, width = overview_HWC.shape[:2]
    if xy_px_N2 is None or not len(xy_px_N2) or not np.isfinite(xy_px_N2).all():
        return overview_HWC
    scale = np.array([width, height]) / size_px
    left, top = np.clip(np.floor(xy_px_N2.min(axis=0) * scale).astype(int), 0, [width - 1, height - 1])
    right, bottom = np.clip(np.ceil(xy_px_N2.max(axis=0) * scale).astype(int), [left + 1, top + 1], [width, height])
    part = overview_HWC[top:bottom, left:right]
    return np.ascontiguousarray(part) if part.size < PART * overview_HWC.size else overview_HWC


def keep_pyramid(uri: str, lake: Location, ingest_id: str) -> None:
    """Write the pyramid of the image at a URI. Raises `SourceError` where it cannot be decoded."""
    images = LakeImages(lake)
    images.write(images.pyramid(ingest_id), partial(make_pyramid, uri))


def _jpeg(pixels_HWC: np.ndarray, quality: int, path: Path) -> None:
    from PIL import Image

    Image.fromarray(pixels_HWC).save(path, format="JPEG", quality=quality)
