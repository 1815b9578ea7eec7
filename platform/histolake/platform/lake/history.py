"""What each version of a lake did, told from the catalogue's rows and the commits of its log; no pair is read.

The rows know for ever what was published, replaced, corrected, refused, retired or restored in which version. The log
also knows of versions without rows (tags, expiries, upkeep); its oldest commits go with time, and the newest
`LOG_COMMITS` are read.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from histolake.platform.lake.catalog import DID
from histolake.platform.lake.versions import floor_of, tags_of
from histolake.platform.lake.where import select

if TYPE_CHECKING:
    from histolake.platform.lake.lake import Lake

__all__ = ["Entry", "history"]

LOG_COMMITS = 1000  # that are read, the newest
_COLUMNS = ("slide_id", "ingest_id", "published_in", "retired_in", "status", "n_pairs", "when", "software")
_OPERATIONS = {"OPTIMIZE": "optimised", "VACUUM END": "vacuumed"}
_OPERATIONS |= dict.fromkeys(("MERGE", "WRITE"), "(of slides that are gone)")  # where no row tells more


@dataclass(kw_only=True)
class Entry:
    """One version."""

    version: int
    when: datetime | None = None
    published: int = 0  # slides that came in by an ingest, those that replaced another too
    replaced: int = 0  # of them
    corrected: int = 0
    reverted: int = 0  # rows that are again what they were in an earlier version
    retired: int = 0  # rows that the version took out or replaced
    refused: int = 0
    pairs: int = 0  # of the published
    software: str | None = None
    tags: list[str] = field(default_factory=list)  # that name this version
    did: str = ""  # in words
    expired: bool = False  # it cannot be read again

    def flat(self) -> dict[str, Any]:
        """As one object of `--json`."""
        return {**asdict(self), "tags": ", ".join(self.tags)}


def history(lake: Lake, where: str | None = None, *, commits: int = LOG_COMMITS) -> list[Entry]:
    """The versions of a lake, the oldest first; with a filter those that did something to slides for which it is true.
    Of the log the newest `commits` are read.

    Raises `UsageError` for a filter that cannot be.
    """
    table = lake.catalog.table("slides")
    properties = lake.catalog.properties(table)
    floor = floor_of(properties)
    entries = _of_rows(lake, table, where)
    for commit in table.history(commits):
        number, did = int(commit["version"]), _words(commit)
        if number not in entries and (where is not None or number < floor or not did):
            continue
        entry = entries.setdefault(number, Entry(version=number))
        entry.when = entry.when or datetime.fromtimestamp(commit["timestamp"] / 1000, UTC)
        entry.did = did
    for tag in tags_of(properties).values():
        if tag.version in entries or where is None:
            entries.setdefault(tag.version, Entry(version=tag.version)).tags.append(tag.name)
    for entry in entries.values():
        entry.expired = entry.version < floor
        entry.did = _counted(entry) or entry.did
    return [entries[number] for number in sorted(entries)]


def _of_rows(lake: Lake, table: Any, where: str | None) -> dict[int, Entry]:
    """The versions that did something to slides, by number."""
    columns = None if where else [*_COLUMNS, "reverted_to"]
    rows = select(lake.catalog.slides(columns, table), where).to_pylist()
    first: dict[str, int] = {}
    for row in rows:
        first[row["ingest_id"]] = min(row["published_in"], first.get(row["ingest_id"], row["published_in"]))
    # An ingest has one row at a time: one that is followed by another of its own was not retired.
    again = {(row["ingest_id"], row["published_in"]) for row in rows if row["published_in"] > first[row["ingest_id"]]}
    taken: defaultdict[int, set[str]] = defaultdict(set)  # version -> published slides of which a row was retired
    entries: dict[int, Entry] = {}

    def at(version: int) -> Entry:
        return entries.setdefault(version, Entry(version=version))

    for row in rows:
        if row["retired_in"] is not None and (row["ingest_id"], row["retired_in"]) not in again:
            at(row["retired_in"]).retired += 1
            if row["status"] == "published":
                taken[row["retired_in"]].add(row["slide_id"])
    for row in rows:
        entry = at(row["published_in"])
        entry.when, entry.software = row["when"], row["software"]
        if row["reverted_to"] is not None:
            entry.reverted += 1
            entry.did = f"reverted to {row['reverted_to']}"
        elif (row["ingest_id"], row["published_in"]) in again:
            entry.corrected += 1
        elif row["status"] == "refused":
            entry.refused += 1
        else:
            entry.published += 1
            entry.pairs += row["n_pairs"] or 0
            entry.replaced += row["slide_id"] in taken[row["published_in"]]
    return entries


def _words(commit: Mapping[str, Any]) -> str:
    """What a commit says of itself, or what its operation says."""
    told = json.loads(commit[DID]) if DID in commit else {}
    match told.get("did"):
        case "reverted":
            return f"reverted to {told['to']}"
        case "tagged" | "untagged":
            return f"{told['did']} {told['name']}"
        case "expired":
            return f"expired versions before {told['before']}"
        case "kept":
            return "kept the versions that were to expire"
        case "forgotten" | "amended":
            return str(told["did"])
    return _OPERATIONS.get(commit["operation"], "")


def _counted(entry: Entry) -> str:
    """What a version did to slides, in words; "" where it did nothing to them."""
    if entry.did.startswith("reverted"):
        return f"{entry.did}: {entry.reverted} restored, {entry.retired} retired"
    counts = {"published": entry.published - entry.replaced, "replaced": entry.replaced, "corrected": entry.corrected}
    said = ", ".join(f"{n} {what}" for what, n in {**counts, "refused": entry.refused}.items() if n)
    return said or (f"{entry.retired} retired" if entry.retired else "")
