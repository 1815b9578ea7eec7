"""Slide images: one way in, `open_image`, whatever the format; overviews, pyramids and hashes of them.

Names are loaded when they are first used, so that a plain import stays quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from histolake.ingestion.images.files import ImageFile, companions
    from histolake.ingestion.images.hashing import image_hash
    from histolake.ingestion.images.opening import Backend, open_image
    from histolake.ingestion.images.pyramid import make_pyramid, wants_pyramid
    from histolake.ingestion.images.settings import ImageSettings

__all__ = [
    "Backend",
    "ImageFile",
    "ImageSettings",
    "companions",
    "image_hash",
    "make_pyramid",
    "open_image",
    "wants_pyramid",
]

_HOME = {
    "Backend": "opening",
    "ImageFile": "files",
    "ImageSettings": "settings",
    "companions": "files",
    "image_hash": "hashing",
    "make_pyramid": "pyramid",
    "open_image": "opening",
    "wants_pyramid": "pyramid",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"histolake.ingestion.images.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
