"""Models: two towers into one space. Names are loaded when they are first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from histolake.training.models.base import Encoder, Model, TwoTowers
    from histolake.training.models.files import build_encoder, load_model, save_model
    from histolake.training.models.published import from_published

__all__ = ["Encoder", "Model", "TwoTowers", "build_encoder", "from_published", "load_model", "save_model"]

_HOME = {
    "Encoder": "base",
    "Model": "base",
    "TwoTowers": "base",
    "build_encoder": "files",
    "from_published": "published",
    "load_model": "files",
    "save_model": "files",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"histolake.training.models.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
