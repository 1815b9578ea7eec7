"""Tiling: patches around spots, from bytes to bytes."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["PatchSettings"]


@dataclass(frozen=True, kw_only=True)
class PatchSettings:
    """What a stored patch shows and how it is encoded."""

    spot_um: float | None = None  # micrometres, width of the spot patch; empty takes the spot's diameter
    niche_um: float | None = None  # micrometres, width of the niche patch; empty takes diameter + 2 pitches
    max_px: int = 224  # pixels, widest stored patch; a larger one is reduced, none is enlarged
    jpeg_quality: int = 90  # 1 to 100
    niche_k: int = 3  # nearest other spots in a niche (ST-Align)
    niche_include_self: bool = True  # whether a niche's mean profile holds the spot itself
