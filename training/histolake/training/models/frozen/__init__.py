"""Frozen image encoders by name, each with its own local weight file. Names are loaded when they are first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from histolake.training.models.frozen.encoder import FrozenImageEncoder, ImageTower
    from histolake.training.models.frozen.facts import ENCODERS, EncoderFacts, facts_of
    from histolake.training.models.frozen.weights import EncoderSettings, find_weights

__all__ = [
    "ENCODERS",
    "EncoderFacts",
    "EncoderSettings",
    "FrozenImageEncoder",
    "ImageTower",
    "facts_of",
    "find_weights",
]

_HOME = {
    "ENCODERS": "facts",
    "EncoderFacts": "facts",
    "EncoderSettings": "weights",
    "FrozenImageEncoder": "encoder",
    "ImageTower": "encoder",
    "facts_of": "facts",
    "find_weights": "weights",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"histolake.training.models.frozen.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
