"""What the lake remembers of a forgetting: how many slides of which versions, and when; no name.

It is a property of `catalog/slides`, so whoever reads an older version is told that slides of it are gone. While a
forgetting is under way its entry also holds the random `ingest_id`s that must go: a process that dies in the middle
leaves behind what another needs to finish it.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

__all__ = ["Forgotten", "begin", "finish_entry", "forgotten_of", "lost", "notice", "outlived", "write"]

FORGOTTEN = "histolake.forgotten"  # JSON: a list of `Forgotten`

Span = tuple[int, int | None, int]  # n slides were in the versions from the first to before the second


@dataclass(frozen=True, kw_only=True)
class Forgotten:
    """One forgetting."""

    key: str  # a hash of random ids: the same forgetting, begun again, is counted once
    when: str  # ISO 8601
    slides: int
    spans: tuple[Span, ...]
    pending: tuple[str, ...] = ()  # ingest_ids, until all of them are gone

    def of_version(self, version: int) -> int:
        """How many slides of a version it took."""
        return sum(n for first, end, n in self.spans if first <= version and (end is None or version < end))


def forgotten_of(properties: Mapping[str, str]) -> list[Forgotten]:
    """Every forgetting of a lake, the oldest first."""
    entries: list[dict[str, Any]] = json.loads(properties.get(FORGOTTEN, "[]"))
    return [
        Forgotten(
            key=entry["key"],
            when=entry["when"],
            slides=entry["slides"],
            spans=tuple((first, end, n) for first, end, n in entry["spans"]),
            pending=tuple(entry.get("pending", ())),
        )
        for entry in entries
    ]


def write(entries: Iterable[Forgotten]) -> dict[str, str]:
    """The change of properties that keeps these entries."""
    kept = [{name: value for name, value in asdict(entry).items() if name != "pending" or value} for entry in entries]
    return {FORGOTTEN: json.dumps(kept) if kept else ""}


def begin(
    entries: Sequence[Forgotten], rows: Iterable[Mapping[str, Any]], ingest_ids: Collection[str], when: str
) -> tuple[list[Forgotten], list[str]]:
    """The entries with one more, of these rows of `catalog/slides`, and its key; the same where it was begun before."""
    key = hashlib.sha256(" ".join(sorted(ingest_ids)).encode()).hexdigest()[:16]
    if any(entry.key == key for entry in entries):
        return list(entries), [key]
    published = [row for row in rows if row["status"] == "published"]
    counted = Counter((row["published_in"], row["retired_in"]) for row in published)
    mine = Forgotten(
        key=key,
        when=when,
        slides=len({row["slide_id"] for row in published}),
        spans=tuple((first, end, n) for (first, end), n in sorted(counted.items(), key=str)),
        pending=tuple(sorted(ingest_ids)),
    )
    return [*entries, mine], [key]


def finish_entry(entries: Sequence[Forgotten], key: str, version: int) -> list[Forgotten]:
    """The entries with one done: its ids are gone, and what was live was so until `version`."""
    return [
        replace(entry, pending=(), spans=tuple((first, end or version, n) for first, end, n in entry.spans))
        if entry.key == key
        else entry
        for entry in entries
    ]


def outlived(entries: Iterable[Forgotten], floor: int) -> list[Forgotten]:
    """The entries that still say something of a version from the floor on."""
    return [entry for entry in entries if entry.pending or any(end is None or end > floor for _, end, _ in entry.spans)]


def lost(entries: Iterable[Forgotten], version: int) -> int:
    """How many slides of a version were forgotten since."""
    return sum(entry.of_version(version) for entry in entries)


def notice(entries: Sequence[Forgotten], version: int) -> str | None:
    """One line for whoever reads a version of which slides were forgotten; None where there are none."""
    count = lost(entries, version)
    if not count:
        return None
    days = sorted({entry.when[:10] for entry in entries if entry.of_version(version)})
    when = f"on {days[0]}" if len(days) == 1 else f"between {days[0]} and {days[-1]}"
    slides = "1 slide" if count == 1 else f"{count} slides"
    return f"{slides} of version {version} {'was' if count == 1 else 'were'} forgotten {when}; it reads without them."
