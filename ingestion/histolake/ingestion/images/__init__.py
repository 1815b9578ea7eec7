"""Slide images: one way in, `open_image`, whatever the format.

Names are loaded when they are first used, so that a plain import stays quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from histolake.ingestion.images.opening import Backend, ImageFile, open_image

__all__ = ["Backend", "ImageFile", "open_image"]

_HOME = {
    "Backend": "opening",
    "ImageFile": "opening",
    "open_image": "opening",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"histolake.ingestion.images.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
