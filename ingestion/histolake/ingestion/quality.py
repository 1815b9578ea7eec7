"""Quality rules: which spots and sections are kept, and why the others are not."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["QualitySettings"]


@dataclass(frozen=True, kw_only=True)
class QualitySettings:
    """Thresholds of the quality rules."""

    min_spots: int = 50  # spots a section must have (ST-Align curation)
    min_genes: int = 200  # a spot is kept with MORE expressed genes than this (ST-bank curation)
    min_matched: float = 0.5  # fraction of the counts' barcodes that must have a position
    max_um_per_px: float = 2.0  # a coarser image flags the slide low_resolution
    min_image_px: int = 2000  # an image with a smaller side flags the slide low_resolution (ST-bank curation)
