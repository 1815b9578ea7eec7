"""The lake, and what every part of histolake stands on.

Names are loaded when they are first used, so that `histolake --help` and a plain import stay quick.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from histolake.platform.errors import HistolakeError
    from histolake.platform.lake import Lake, Snapshot
    from histolake.platform.settings import Settings, load_settings
    from histolake.platform.splits import Split
    from histolake.platform.storage import Location

    __version__: str

__all__ = ["HistolakeError", "Lake", "Location", "Settings", "Snapshot", "Split", "__version__", "load_settings"]

_HOME = {
    "HistolakeError": "errors",
    "Lake": "lake",
    "Location": "storage",
    "Settings": "settings",
    "Snapshot": "lake",
    "Split": "splits",
    "load_settings": "settings",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":  # asked for when it is wanted: array code runs from a bare checkout too
        return version("histolake")
    if name in _HOME:
        return getattr(import_module(f"histolake.platform.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
