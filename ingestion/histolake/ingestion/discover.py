"""Finding sections: from what a curator points at to named candidates.

Every folder below a source is shown to every reader. A folder that none knows is not passed over in silence: unless
sections lie below it or above it, it becomes a candidate that is refused.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from histolake.ingestion.readers import Listing, Source, readers
from histolake.ingestion.slide import METADATA_FIELDS, SlideMetadata
from histolake.platform.errors import SourceError, UsageError
from histolake.platform.storage import Location

__all__ = ["COHORT_FILE", "Candidate", "find_sections", "read_metadata"]

COHORT_FILE = "cohort.json"
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


def find_sections(sources: Sequence[str], cohort: str, metadata_file: str | None = None) -> list[Candidate]:
    """The sections below `sources` (folders, or a `cohort.json`), by slide_id.

    A section's name is what the curator's metadata or its own say, else its path below the source. Raises
    `UsageError` for a source that is not there, and for two sections of one name.
    """
    if not _NAME.fullmatch(cohort):
        raise UsageError(f"The cohort's name is {cohort!r}; use one without '/'.")
    found: list[Candidate] = []
    tables: list[str] = [metadata_file] if metadata_file else []
    for text in sources:
        location = Location.parse(text)
        if not location.exists():
            raise UsageError(f"There is nothing at {location}; name a folder of sections or a {COHORT_FILE}.")
        if location.is_file() and location.name == COHORT_FILE:
            listed, table = _read_cohort(location)
            found += [c for section, place in listed for c in _below(place, cohort, named=section)]
            tables = tables or ([table] if table else [])
        else:
            found += _below(location, cohort, named=None)
    rows = read_metadata(tables[0]) if tables else {}
    found = [_with_metadata(candidate, rows) for candidate in found]
    _check_names(found)
    return sorted(found, key=lambda candidate: candidate.slide_id)


def read_metadata(uri: str) -> dict[str, dict[str, str]]:
    """A curator's table: section -> what it says of it. Columns are `section` and those of the provenance."""
    location = Location.parse(uri)
    if not location.is_file():
        raise UsageError(f"There is no metadata table at {location}.")
    table = csv.DictReader(io.StringIO(location.read_bytes().decode("utf-8-sig")))
    names = table.fieldnames or []
    if "section" not in names:
        raise UsageError(f"{location} has no column 'section'; it has {', '.join(names) or 'none'}.")
    unknown = sorted(set(names) - set(METADATA_FIELDS))
    if unknown:
        raise UsageError(f"{location} has columns {unknown}; those understood are {', '.join(METADATA_FIELDS)}.")
    rows: dict[str, dict[str, str]] = {}
    for number, row in enumerate(table, start=2):
        section = (row["section"] or "").strip()
        if not section or section in rows:
            raise UsageError(f"{location}, line {number}: section {section!r} is empty or named twice.")
        rows[section] = {name: value.strip() for name, value in row.items() if value and value.strip()}
        SlideMetadata().updated(rows[section])
    return rows


def _read_cohort(location: Location) -> tuple[list[tuple[str, Location]], str | None]:
    """Sections of a cohort file, and its metadata table. Paths are absolute, or below the file's folder."""
    try:
        cohort = json.loads(location.read_bytes())
        listed = [(str(entry["section"]), str(entry["path"])) for entry in cohort["sections"]]
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{location} is no cohort file ({error}); `histolake sample` writes one.") from error
    folder = location.parent()

    def place(path: str) -> Location:
        absolute = path.startswith("/") or "://" in path
        return Location.parse(path) if absolute else folder.join(path)

    gone = [path for _, path in listed if not place(path).exists()]
    if gone:
        raise UsageError(f"{location} names {gone[0]}, which is not there; run `histolake sample` again.")
    table = cohort.get("metadata")
    return [(section, place(path)) for section, path in listed], place(table).uri if table else None


def _below(root: Location, cohort: str, named: str | None) -> Iterator[Candidate]:
    """Candidates at or below a source."""
    if root.is_file():
        listings: dict[str, Listing] = {}
        yield _unknown(root, cohort, named or root.name)
        return
    listings = _folders(root)
    claimed: dict[str, Source] = {}
    for uri, listing in listings.items():
        if not any(uri.startswith(f"{above}/") for above in claimed):
            hit = next((source for r in readers().values() if (source := r.find(listing)) is not None), None)
            if hit is not None:
                claimed[uri] = hit
    taken = list(claimed)
    for uri, source in claimed.items():
        section = named or str(source.metadata.get("section") or "") or _path_below(uri, root)
        yield Candidate(slide_id=f"{cohort}/{section}", cohort=cohort, section=section, uri=uri, source=source)
    refused: list[str] = []
    for uri, listing in listings.items():
        related = any(uri.startswith(f"{t}/") or t.startswith(f"{uri}/") or t == uri for t in taken)
        if (
            not related
            and not any(uri.startswith(f"{above}/") for above in refused)
            and (listing.files or uri != root.uri)
        ):
            # A folder that holds nothing but folders is judged by them.
            if not listing.files and any(other.startswith(f"{uri}/") for other in listings):
                continue
            refused.append(uri)
            yield _unknown(listing.location, cohort, named or _path_below(uri, root))
    if not claimed and not refused:
        yield _unknown(root, cohort, named or root.name)


def _folders(root: Location) -> dict[str, Listing]:
    """Every folder at and below a root, by path, with the names of its files. Hidden files and folders are passed
    over."""
    files: dict[str, list[str]] = {root.uri: []}
    paths = set()
    for entry in root.entries():
        paths.add(entry.location.uri)
        files.setdefault(entry.location.parent().uri, []).append(entry.location.name)
    if not root.is_remote:  # a store has no empty folders
        for location in root.list(recursive=True):
            if location.uri not in paths:
                files.setdefault(location.uri, [])
    hidden = re.compile(r"/\.[^/]*")
    return {
        uri: Listing(location=replace(root, uri=uri), files=tuple(n for n in sorted(names) if not n.startswith(".")))
        for uri, names in sorted(files.items())
        if not hidden.search(uri[len(root.uri) :])
    }


def _path_below(uri: str, root: Location) -> str:
    return uri[len(root.uri) :].strip("/") or root.name


def _unknown(location: Location, cohort: str, section: str) -> Candidate:
    known = "; ".join(f"{name} ({r.looks_for})" for name, r in readers().items())
    problem = SourceError(
        f"No reader knows what is in {location}. Readers there are: {known}.",
        rule="unknown_format",
        figure=float(len(location.list())) if location.is_dir() else 1.0,  # files and folders there
        file=location.uri,
    )
    return Candidate(
        slide_id=f"{cohort}/{section}", cohort=cohort, section=section, uri=location.uri, source=None, problem=problem
    )


def _with_metadata(candidate: Candidate, rows: Mapping[str, Mapping[str, str]]) -> Candidate:
    row = rows.get(candidate.section, {})
    return replace(candidate, metadata={**row, "section": candidate.section})


def _check_names(found: Sequence[Candidate]) -> None:
    first: dict[str, Candidate] = {}
    for candidate in found:
        other = first.setdefault(candidate.slide_id, candidate)
        if other is not candidate:
            raise UsageError(
                f"{other.uri} and {candidate.uri} would both be {candidate.slide_id}; name one in its section.json or "
                "ingest them into two cohorts."
            )
