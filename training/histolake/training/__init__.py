"""Pairs in, registered models out.

Names are loaded when they are first used, so that `histolake --help` and a plain import stay quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from histolake.training.models import load_model
    from histolake.training.reading import PairReader
    from histolake.training.recipes import Recipe, find_recipe
    from histolake.training.registry import resolve_model

__all__ = ["PairReader", "Recipe", "find_recipe", "load_model", "resolve_model"]

_HOME = {
    "PairReader": "reading",
    "Recipe": "recipes",
    "find_recipe": "recipes",
    "load_model": "models",
    "resolve_model": "registry",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"histolake.training.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
