"""Readers: one a source format, found by looking at the files.

A reader says which folders it knows (`find`) and turns one of them into a `Slide` (`read`). Readers are plug-ins of the
entry-point group `histolake.readers`; a package that declares one there is used like ours.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import entry_points
from typing import Any, Protocol

from histolake.ingestion.slide import Slide
from histolake.platform.errors import UsageError
from histolake.platform.storage import Location

__all__ = ["Listing", "SlideReader", "Source", "digest", "reader", "readers"]

BLOCK_BYTES = 8 << 20


@dataclass(frozen=True, kw_only=True)
class Source:
    """One section found on disk or in a store. Small, and safe to send to a worker."""

    reader: str  # name of the reader that knows it
    uri: str  # the folder or file
    files: Mapping[str, str]  # role -> URI, of every file that the reader would read
    metadata: Mapping[str, Any] = field(default_factory=dict)  # what stands beside the files (section.json)


@dataclass(frozen=True, kw_only=True)
class Listing:
    """One folder and the names of the files that lie directly in it."""

    location: Location
    files: tuple[str, ...]


class SlideReader(Protocol):
    """A source format."""

    name: str  # as in `--json` output and in the catalogue
    looks_for: str  # one phrase: the files by which the format is known

    def find(self, folder: Listing) -> Source | None:
        """The section in this folder, or None where the reader does not know it. Opens small files at most."""

    def read(self, source: Source, metadata: Mapping[str, Any]) -> Slide:
        """The section without its image; `metadata` win over what the source says.

        Raises `SourceError` (rule, figure, limit, file) where the source is refused.
        """


@cache
def readers() -> dict[str, SlideReader]:
    """Every installed reader, by name."""
    found = sorted(entry_points(group="histolake.readers"), key=lambda entry: entry.name)
    return {entry.name: entry.load()() for entry in found}


def reader(name: str) -> SlideReader:
    """The reader of a name."""
    if name not in readers():
        raise UsageError(f"There is no reader {name!r}; there are {', '.join(readers())}.")
    return readers()[name]


def digest(source: Source, metadata: Mapping[str, Any]) -> str:
    """A hash of everything that the slide is made from: the files' contents, their roles, and the metadata given.

    The same files elsewhere have the same digest. Files are read in blocks.
    """
    total = hashlib.sha256(source.reader.encode())
    for role, uri in sorted(source.files.items()):
        total.update(f"\0{role}\0{Location.parse(uri).name}\0".encode())
        total.update(_content(uri))
    for key, value in sorted(metadata.items()):
        total.update(f"\0{key}={value}".encode())
    return total.hexdigest()


def _content(uri: str) -> bytes:
    filesystem, path = Location.parse(uri).filesystem()
    content = hashlib.sha256()
    with filesystem.open_input_stream(path, compression=None) as stream:
        while block := stream.read(BLOCK_BYTES):
            content.update(block)
    return content.digest()
