"""Settings of what the lake keeps of slide images."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ImageSettings"]


@dataclass(frozen=True, kw_only=True)
class ImageSettings:
    """What the lake keeps of slide images. None of it changes a row of the pairs."""

    pyramid_above_mpx: float = 100.0  # megapixels; a larger image that cannot be read in parts becomes a tiled pyramid
    overview_px: int = 1024  # pixels, longest side of a section's overview
    overview_quality: int = 85  # 1 to 100, of the overview's JPEG
