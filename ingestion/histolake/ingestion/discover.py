"""Finding sections: from what a curator points at to named candidates, one after the other.

Folders are walked one listing at a time, on disk and in a store, and each is shown to every reader; candidates come out
as they are found, so that a prefix of thousands starts to be read at once. A folder that none knows is not passed over
in silence: unless sections lie below it, it becomes a candidate that is refused.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from histolake.ingestion.cohort_file import COHORT_FILE, read_cohort
from histolake.ingestion.metadata import MetadataTable
from histolake.ingestion.readers import Listing, Source, readers
from histolake.platform.errors import SourceError, UsageError
from histolake.platform.settings import Settings
from histolake.platform.storage import Location

__all__ = ["Candidate", "find_sections"]

IMAGES = (".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".dcm", ".jpg", ".jpeg", ".png")
ZARR = ("zarr.json", ".zgroup", ".zattrs", ".zarray")  # files by which a store of arrays is known
_NAME = re.compile(r"[^/\s\x00][^/\x00]*")


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One section on its way in: a source that a reader knows, or the reason why none does."""

    slide_id: str
    cohort: str
    section: str
    uri: str
    source: Source | None
    metadata: Mapping[str, Any] = field(default_factory=dict)  # what the curator says; wins over the source
    problem: SourceError | None = None
    expects: str | None = None  # the digest that the source must still have; None takes it as it is
    rehash: bool = False  # read all of it for its digest, even what this machine has read and has not changed since


def find_sections(
    sources: Sequence[str],
    cohort: str,
    metadata: MetadataTable | str | None = None,
    settings: Settings | None = None,
) -> Iterator[Candidate]:
    """The sections below `sources` (folders, files, or a `cohort.json`), as they are found.

    `metadata` is a curator's table, or its URI; one that is empty takes in the table that a `cohort.json` names.
    A section's name is what the curator's metadata or its own say, else its path below the source. A second section of
    a name that is taken is refused. Raises `UsageError` at once for a source that is not there.
    """
    if not _NAME.fullmatch(cohort):
        raise UsageError(f"The cohort's name is {cohort!r}; use one without '/'.")
    places: list[tuple[Location, str | None]] = []  # and the name of its section, where the curator gives one
    if isinstance(metadata, str):
        metadata = MetadataTable.read([metadata])
    known = MetadataTable() if metadata is None else metadata
    tables: list[str] = []
    for text in sources:
        location = Location.parse(text)
        if not location.exists():
            raise UsageError(f"There is nothing at {location}; name a folder of sections or a {COHORT_FILE}.")
        if location.is_file() and location.name == COHORT_FILE:
            listed, table = read_cohort(location)
            places += [(place, section) for section, place in listed]
            tables += [table] if table else []
        else:
            places.append((location, None))
    if not known:
        for uri in dict.fromkeys(tables):
            known.add(uri)
    return _candidates(places, cohort, known, settings)


def _candidates(
    places: Iterable[tuple[Location, str | None]], cohort: str, table: MetadataTable, settings: Settings | None
) -> Iterator[Candidate]:
    taken: dict[str, str] = {}
    for root, named in places:
        for section, source, problem in _below(root, named, settings):
            uri = source.uri if source else str(problem and problem.file)
            candidate = Candidate(
                slide_id=f"{cohort}/{section}", cohort=cohort, section=section, uri=uri, source=source, problem=problem
            )
            if taken.setdefault(candidate.slide_id, uri) != uri:
                yield _second(candidate, taken[candidate.slide_id])
            else:
                yield _with_metadata(candidate, table)


def _second(candidate: Candidate, first: str) -> Candidate:
    """A section whose name is taken: refused, under a name of its own."""
    problem = SourceError(
        f"{first} and {candidate.uri} would both be {candidate.slide_id}; name one in its section.json or ingest them "
        "into two cohorts.",
        rule="name_taken",
        figure=2.0,
        limit=1.0,
        file=candidate.uri,
    )
    own = f"{candidate.section} ({hashlib.sha256(candidate.uri.encode()).hexdigest()[:8]})"
    return replace(candidate, slide_id=f"{candidate.cohort}/{own}", section=own, source=None, problem=problem)


def _below(
    root: Location, named: str | None, settings: Settings | None
) -> Iterator[tuple[str, Source | None, SourceError | None]]:
    """What lies at or below a place: a name with a source, or with the reason why there is none.

    A place that the curator names is one section: the first that is found there.
    """
    unknown: list[Location] = []
    if root.is_file():
        folder = root.parent()
        listed = _sources(Listing(folder, settings))
        found: Iterable[Source] = (s for s in listed if root.uri == s.uri or root.uri in s.files.values())
    else:
        folder, found = root, _walk(Listing(root, settings), unknown)
    known = False
    for source in found:
        known = True
        yield named or _name(source, folder), source, None
        if named:
            return
    for location in unknown or ([] if known else [root]):
        yield named or _path_below(location.uri, folder), None, _unknown(location)
        if named:
            return


def _walk(
    folder: Listing, unknown: list[Location], seen: frozenset[str] = frozenset()
) -> Generator[Source, None, bool]:
    """The sources at and below a folder; true where there are any.

    Places that nobody knows are added to `unknown`: of folders within each other the upper one.
    """
    sources = _sources(folder)
    yield from sources
    known = bool(sources)
    if any(source.uri == folder.location.uri for source in sources):
        return True
    owned = {uri for source in sources for uri in source.owns}
    mine: list[Location] = []
    # A store of arrays is not searched: it has a folder an axis.
    names = () if folder.file(*ZARR) else folder.folders
    seen |= {_real(folder.location)}
    for name in names:
        child = folder.child(name)
        assert child is not None
        if child.location.uri not in owned and _real(child.location) not in seen:
            known |= yield from _walk(child, mine, seen)
    if not known and (folder.files or not names):
        mine = [folder.location]
    unknown += mine
    return known


def _real(location: Location) -> str:
    """Where a folder is in truth, so that a link to a folder above ends the walk."""
    return location.uri if location.is_remote else str(Path(location.uri).resolve())


def _sources(folder: Listing) -> list[Source]:
    """What the readers find in one folder; of two that would read the same counts the first reader's."""
    taken: set[str | None] = set()
    sources = []
    for each in readers().values():
        found = [source for source in each.find(folder) if source.files.get("counts") not in taken]
        sources += found
        taken |= {source.files["counts"] for source in found if "counts" in source.files}
        if any(source.uri == folder.location.uri for source in found):
            # The folder is a section of this format: of the others, only files that are sections of their own count.
            taken |= {None}
    return sources


def _name(source: Source, root: Location) -> str:
    """A section's name: as the metadata say, else its path below what the curator named."""
    said = str(source.metadata.get("section") or "")
    if said:
        return said
    if source.section is None:
        is_file = source.uri in source.files.values() and "." in Location.parse(source.uri).name
        path = source.uri[: source.uri.rindex(".")] if is_file else source.uri
        return _path_below(path, root)
    folder = Location.parse(source.uri).parent() if source.uri in source.files.values() else Location.parse(source.uri)
    above = _path_below(folder.uri, root) if folder.uri.startswith(f"{root.uri}/") else ""
    return f"{above}/{source.section}" if above else source.section


def _path_below(uri: str, root: Location) -> str:
    """The path below a root; the folder `outs` in which 10x's programs write is no part of a name."""
    path = uri[len(root.uri) :].strip("/") if uri != root.uri else ""
    path = path.removesuffix("outs").rstrip("/") if path == "outs" or path.endswith("/outs") else path
    if path:
        return path
    return root.parent().name if root.name == "outs" else root.name


def _unknown(location: Location) -> SourceError:
    files, folders = location.contents() if location.is_dir() else ([location], [])
    images = [file.name for file in files if file.suffix in IMAGES]
    what = f"There are images ({', '.join(images[:3])}) but no counts for them" if images else "No reader knows what is"
    return SourceError(
        f"{what} in {location}. If it is a section, it needs the files of one of the formats {', '.join(readers())} "
        "(docs/readers.md tells which); if it is none, nothing is to be done.",
        rule="unknown_format",
        figure=float(len(files) + len(folders)),
        file=location.uri,
    )


def _with_metadata(candidate: Candidate, table: MetadataTable) -> Candidate:
    known = candidate.source.metadata if candidate.source else {}
    said = table.row(candidate.section, known, is_section=candidate.source is not None)
    return replace(candidate, metadata={**said, "section": candidate.section})
