"""`section.json`: what is known about a section, in a file beside it. Every reader honours it.

Its keys are the fields of `SlideMetadata`. The curator's metadata table wins over it, and it wins over what a format
says. A path in it (`image`) is taken from the folder that it lies in.
"""

from __future__ import annotations

import json
from typing import Any

from histolake.ingestion.readers import Listing, Source
from histolake.ingestion.slide import SlideMetadata
from histolake.platform.errors import SourceError, UsageError
from histolake.platform.storage import Location

__all__ = ["FILE", "place_of", "read_beside", "with_beside"]

FILE = "section.json"
UNREADABLE = "unreadable"


def read_beside(folder: Listing, file: str = FILE) -> tuple[dict[str, str], dict[str, Any]]:
    """The file as a role of the source, and what it says; both empty where there is none.

    `file` is another name for it, where a folder holds several sections.

    Nothing is raised: that the file is damaged is told where the section is read, so that one never stops a search.
    """
    uri = folder.file(file)
    if uri is None:
        return {}, {}
    try:
        values = json.loads(Location.parse(uri).read_bytes())
    except ValueError as error:
        return {"metadata": uri}, {UNREADABLE: str(error)}
    if not isinstance(values, dict):
        return {"metadata": uri}, {UNREADABLE: "it is not a JSON object"}
    if values.get("image"):
        values["image"] = place_of(str(values["image"]), folder.location).uri
    return {"metadata": uri}, values


def place_of(path: str, folder: Location) -> Location:
    """A path that a file names: absolute, a URI, or below the file's folder."""
    return Location.parse(path) if path.startswith("/") or "://" in path else folder.join(path)


def with_beside(known: SlideMetadata, source: Source) -> SlideMetadata:
    """What a format says, with what the source's metadata say in its place; raises `SourceError` (`metadata_valid`)."""
    file = source.files.get("metadata", source.uri)
    try:
        if UNREADABLE in source.metadata:
            raise UsageError(f"It cannot be read: {source.metadata[UNREADABLE]}.")
        return known.updated(dict(source.metadata))
    except UsageError as error:
        raise SourceError(f"{file}: {error}", rule="metadata_valid", file=file) from error
