"""Public cohorts by name: a catalogue of what 10x Genomics publishes, and a download that resumes and verifies."""

from __future__ import annotations

from importlib import import_module
from typing import Any

__all__ = ["Catalogue", "Cohort", "PublicSettings", "fetch", "find_cohort", "load_catalogue", "smallest_within"]

_HOME = {
    "Catalogue": "catalogue",
    "Cohort": "catalogue",
    "PublicSettings": "catalogue",
    "fetch": "fetching",
    "find_cohort": "catalogue",
    "load_catalogue": "catalogue",
    "smallest_within": "probe",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
