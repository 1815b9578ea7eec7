"""Sections as the catalogue recorded them: found again where they were, to be ingested once more.

A slide's row says where its source is, which reader read it, and what the curator's tables said of it. The source is
found by the same reader; whether it is still what it was is for the pipeline to see, which takes its digest anyway.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from histolake.ingestion.discover import Candidate
from histolake.ingestion.readers import Listing, Source, readers
from histolake.platform.errors import SourceError
from histolake.platform.settings import Settings
from histolake.platform.storage import Location

__all__ = ["as_recorded", "given"]

LEVELS = 3  # folders above a source's file in which its layout may begin


def given(metadata: Mapping[str, Any]) -> list[dict[str, str]]:
    """What the curator's tables say of a section, as the catalogue keeps it. Its name is recorded by itself."""
    return [{"column": name, "value": str(value)} for name, value in sorted(metadata.items()) if name != "section"]


def as_recorded(row: Mapping[str, Any], settings: Settings | None = None) -> Candidate:
    """The candidate that a row of `catalog/slides` was made of; `problem` says why where it is not there any more.

    The source has to be what it was. Only one of a reader with settings of its own, which may choose other files of it
    (the bins of Visium HD), is taken as it is now.
    """
    said = {entry["column"]: entry["value"] for entry in row["given"] or []}
    common: dict[str, Any] = {
        "slide_id": row["slide_id"],
        "cohort": row["cohort"],
        "section": row["section"],
        "uri": row["source"],
        "metadata": {**said, "section": row["section"]},
        "expects": row["source_digest"],
    }
    place = Location.parse(row["source"])
    if row["reader"] not in readers():
        return Candidate(**common, source=None, problem=_gone(row, f"its reader {row['reader']!r} is not installed"))
    if not place.exists():
        return Candidate(**common, source=None, problem=_gone(row, "it is gone"))
    source = _find(place, row, settings)
    if source is not None and source.by_settings:
        common["expects"] = None
    if source is None:
        return Candidate(**common, source=None, problem=_gone(row, f"the reader {row['reader']} does not know it now"))
    return Candidate(**common, source=source)


def _gone(row: Mapping[str, Any], why: str) -> SourceError:
    return SourceError(f"{row['source']} cannot be read again: {why}.", rule="source_gone", file=row["source"])


def _find(place: Location, row: Mapping[str, Any], settings: Settings | None) -> Source | None:
    """The source by its reader: in its folder, or in one above, where its layout begins."""
    reader = readers()[row["reader"]]
    folder = place if place.is_dir() else place.parent()
    for _ in range(LEVELS):
        found = [source for source in reader.find(Listing(folder, settings)) if source.uri == row["source"]]
        # A folder may hold several sections.
        named = [source for source in found if source.section is None or _is_named(source, row["section"])]
        if named:
            return named[0]
        above = folder.parent()
        if above.uri == folder.uri:
            return None
        folder = above
    return None


def _is_named(source: Source, section: str) -> bool:
    name = source.section or ""
    return section == name or section.endswith(f"/{name}") or source.metadata.get("section") == section
