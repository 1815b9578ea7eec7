"""Models in, answers out: the tasks, their evaluation, the service and its client.

Names are loaded when they are first used, so that `histolake --help` and a plain import stay quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from histolake.serving.client import Client

__all__ = ["Client"]

_HOME = {"Client": "client"}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"histolake.serving.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
