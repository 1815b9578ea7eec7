"""ST-Align: spots and niches, pictures and genes, in one space. Names are loaded when they are first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from histolake.training.models.st_align.ablations import ABLATIONS, Ablation
    from histolake.training.models.st_align.model import StAlign, StAlignConfig, build_st_align

__all__ = ["ABLATIONS", "Ablation", "StAlign", "StAlignConfig", "build_st_align"]

_HOME = {
    "ABLATIONS": "ablations",
    "Ablation": "ablations",
    "StAlign": "model",
    "StAlignConfig": "model",
    "build_st_align": "model",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"histolake.training.models.st_align.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
