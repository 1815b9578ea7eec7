"""Objectives: from the vectors of a batch to what is made small, on one process and on many."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from histolake.training.objectives.base import Objective
    from histolake.training.objectives.caption import Captioned
    from histolake.training.objectives.contrastive import Contrastive
    from histolake.training.objectives.gradient_cache import backward
    from histolake.training.objectives.negatives import ignore_mask
    from histolake.training.objectives.smoothed import Smoothed
    from histolake.training.objectives.spot_niche import SpotNiche

__all__ = ["Captioned", "Contrastive", "Objective", "Smoothed", "SpotNiche", "backward", "ignore_mask"]

_HOME = {
    "Captioned": "caption",
    "Contrastive": "contrastive",
    "Objective": "base",
    "Smoothed": "smoothed",
    "SpotNiche": "spot_niche",
    "backward": "gradient_cache",
    "ignore_mask": "negatives",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"histolake.training.objectives.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
