"""Whether two sets of slides share anything that an evaluation must not share with a training.

`sets` reads what a person calls a set, `shared` compares two. Names are loaded when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from histolake.ingestion.overlap.sets import SlideSet, read_set
    from histolake.ingestion.overlap.shared import Shared, find_shared

__all__ = ["Shared", "SlideSet", "find_shared", "read_set"]

_HOME = {"Shared": "shared", "SlideSet": "sets", "find_shared": "shared", "read_set": "sets"}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"histolake.ingestion.overlap.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
