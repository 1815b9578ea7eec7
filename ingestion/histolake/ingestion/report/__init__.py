"""The cohort report: one HTML file that says what became of each section, in pictures and plain words.

`collect` reads the facts from a lake, `render` makes the page. Names are loaded when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from histolake.ingestion.report.collect import collect
    from histolake.ingestion.report.facts import Cohort, Section
    from histolake.ingestion.report.render import render

__all__ = ["Cohort", "Section", "collect", "render"]

_HOME = {"Cohort": "facts", "Section": "facts", "collect": "collect", "render": "render"}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"histolake.ingestion.report.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
