"""Readers: one a source format, found by looking at the files.

A reader says which sections a folder holds (`find`) and turns one of them into a `Slide` (`read`). Readers are plug-ins
of the entry-point group `histolake.readers`; a package that declares one there is used like ours.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib.metadata import entry_points
from typing import Any, Protocol

from histolake.ingestion.slide import Slide
from histolake.platform.digests import content_digest
from histolake.platform.errors import UsageError
from histolake.platform.settings import Settings, load_settings
from histolake.platform.storage import Location

__all__ = ["Listing", "SlideReader", "Source", "digest", "reader", "readers"]

# Formats that are known by a layout are asked before those that are known by one file; plug-ins come after, by name.
ORDER = ("space-ranger", "visium-hd", "xenium", "spatialdata", "hest", "stimage", "legacy-st", "anndata")


@dataclass(frozen=True, kw_only=True)
class Source:
    """One section found on disk or in a store. Small, and safe to send to a worker."""

    reader: str  # name of the reader that knows it
    uri: str  # the folder, or the file of a format that keeps a section in one
    files: Mapping[str, str]  # role -> URI of every file or folder that the reader would read; "counts" is the first
    metadata: Mapping[str, Any] = field(default_factory=dict)  # what stands beside the files (section.json)
    section: str | None = None  # its name, where a folder holds several and the metadata name none
    by_settings: tuple[str, ...] = ()  # keys of `metadata` that settings of the reader decided
    owns: tuple[str, ...] = ()  # URIs of folders of this layout, in which no other section is looked for


class Listing:
    """One folder: the names of what lies directly in it, asked for when they are first wanted."""

    def __init__(self, location: Location, settings: Settings | None = None) -> None:
        self.location = location
        self._settings = settings

    @cached_property
    def settings(self) -> Settings:
        """The settings in force, for a reader that has some of its own. What they decide belongs into the metadata of
        the source, so that another choice is another digest."""
        return self._settings or load_settings()

    @cached_property
    def _names(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        files, folders = (tuple(entry.name for entry in kind) for kind in self.location.contents())
        return files, folders

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the files, sorted; hidden ones are passed over."""
        return tuple(name for name in self._names[0] if not name.startswith("."))

    @property
    def folders(self) -> tuple[str, ...]:
        """Names of the folders, sorted; hidden ones are passed over."""
        return tuple(name for name in self._names[1] if not name.startswith("."))

    def child(self, name: str) -> Listing | None:
        """A folder below, which may be several steps down ("binned_outputs/square_008um"); None where it is not."""
        here: Listing = self
        for part in name.split("/"):
            if part not in here.folders:
                return None
            here = here._child(part)
        return here

    @cached_property
    def _children(self) -> dict[str, Listing]:
        return {}

    def _child(self, name: str) -> Listing:
        return self._children.setdefault(name, Listing(self.location.join(name), self._settings))

    def file(self, *names: str) -> str | None:
        """URI of the first of these files that is there, hidden or not; a name may have folders
        ("spatial/tissue_positions.csv")."""
        for name in names:
            folder, _, file = name.rpartition("/")
            here = self.child(folder) if folder else self
            if here is not None and file in here._names[0]:
                return here.location.join(file).uri
        return None


class SlideReader(Protocol):
    """A source format."""

    name: str  # as in `--json` output and in the catalogue
    looks_for: str  # one phrase: the files by which the format is known

    def find(self, folder: Listing) -> Sequence[Source]:
        """The sections in this folder; none where the reader does not know it. Opens small files at most, and raises
        nothing on files that are not what they seem: what is wrong is told by `read`."""

    def read(self, source: Source, metadata: Mapping[str, Any]) -> Slide:
        """The section without its image; `metadata` win over what the source says.

        Raises `SourceError` (rule, figure, limit, file) where the source is refused.
        """


@cache
def readers() -> dict[str, SlideReader]:
    """Every installed reader, in the order in which they are asked."""
    found = {entry.name: entry for entry in entry_points(group="histolake.readers")}
    names = [name for name in ORDER if name in found] + sorted(set(found) - set(ORDER))
    return {name: found[name].load()() for name in names}


def reader(name: str) -> SlideReader:
    """The reader of a name."""
    if name not in readers():
        raise UsageError(f"There is no reader {name!r}; there are {', '.join(readers())}.")
    return readers()[name]


def digest(source: Source, metadata: Mapping[str, Any], *, rehash: bool = False) -> str:
    """A hash of everything that the slide is made from: the files' contents, their roles, and the metadata given.

    The same files elsewhere have the same digest. A file that was read before and has not changed is not read again
    (`platform/digests.py`), but with `rehash`.
    """
    from histolake.ingestion.images import companions

    total = hashlib.sha256(source.reader.encode())
    files = dict(source.files)
    if metadata.get("image"):
        files["image named"] = str(metadata["image"])
    for role, uri in list(files.items()):
        # A slide in several files (MRXS) is all of them.
        files |= {f"{role} {name}": other for other in companions(uri) if (name := Location.parse(other).name)}
    for role, uri in sorted(files.items()):
        total.update(f"\0{role}\0{Location.parse(uri).name}\0".encode())
        total.update(content_digest(Location.parse(uri), rehash=rehash))
    for said in (source.metadata, metadata):
        for key, value in sorted(said.items()):
            if key != "image":
                total.update(f"\0{key}={value}".encode())
    return total.hexdigest()
