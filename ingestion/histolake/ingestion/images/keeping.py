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


def keep_overview(uri: str, lake: Location, ingest_id: str, settings: ImageSettings) -> tuple[str, bool]:
    """Write the overview of the image at a URI; its perceptual hash, and whether it should become a pyramid.

    Raises `SourceError` where the image cannot be decoded.
    """
    with closing(open_image(uri)) as image:
        overview_HWC = image.overview(settings.overview_px)
        wanted = wants_pyramid(image, settings)
    images = LakeImages(lake)
    images.write(images.picture(ingest_id), partial(_jpeg, overview_HWC, settings.overview_quality))
    return image_hash(overview_HWC), wanted


def keep_pyramid(uri: str, lake: Location, ingest_id: str) -> None:
    """Write the pyramid of the image at a URI. Raises `SourceError` where it cannot be decoded."""
    images = LakeImages(lake)
    images.write(images.pyramid(ingest_id), partial(make_pyramid, uri))


def _jpeg(pixels_HWC: np.ndarray, quality: int, path: Path) -> None:
    from PIL import Image

    Image.fromarray(pixels_HWC).save(path, format="JPEG", quality=quality)
