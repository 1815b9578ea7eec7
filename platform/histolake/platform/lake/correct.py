"""Corrections: what is known of a slide is set right without touching its pairs.

A correction retires the slide's row and inserts one with the same `ingest_id`, in one commit of the catalogue; it
counts from its own version on, and every version before reads as before. The row remembers what the source says of each
corrected column. A later ingest of the slide keeps the correction as long as the source says the same (or nothing);
when the source says something new, that wins. A column that is corrected back to what the source says is no longer
corrected.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from histolake.platform.errors import ConflictError, SlideNotFoundError, UsageError
from histolake.platform.schemas import CORRECTABLE, PROVENANCE

if TYPE_CHECKING:
    from histolake.platform.lake.snapshot import Snapshot

__all__ = ["Change", "born", "carry", "correct_rows", "corrections"]


@dataclass(frozen=True, kw_only=True)
class Change:
    """One value to be set right: what it is, and what it shall be. An empty value is None."""

    slide_id: str
    column: str
    old: str | None
    new: str | None


def corrections(snapshot: Snapshot, values: Mapping[str, Mapping[str, str | None]]) -> list[Change]:
    """What would change if slides (published or refused) had these values: slide_id -> column -> value.

    Raises `UsageError` for a column that cannot be corrected, `SlideNotFoundError` for a slide that is not there.
    """
    for column in sorted({column for wanted in values.values() for column in wanted} - set(CORRECTABLE)):
        raise UsageError(_refusal(column))
    rows: dict[str, dict[str, Any]] = {}
    for row in snapshot.slides(include_refused=True).select(["slide_id", "status", *CORRECTABLE]).to_pylist():
        if row["status"] == "published" or row["slide_id"] not in rows:
            rows[row["slide_id"]] = row
    for slide_id in sorted(set(values) - set(rows)):
        raise SlideNotFoundError(
            f"Version {snapshot.version} of {snapshot.lake.uri} has no slide {slide_id}; "
            "`histolake lake slides` lists what it has."
        )
    return [
        Change(slide_id=slide_id, column=column, old=rows[slide_id][column], new=new or None)
        for slide_id, wanted in sorted(values.items())
        for column, new in sorted(wanted.items())
        if rows[slide_id][column] != (new or None)
    ]


def _refusal(column: str) -> str:
    can = f"{', '.join(CORRECTABLE[:-1])} and {CORRECTABLE[-1]} can be corrected"
    if column in {field.name for field in PROVENANCE} - {"cohort", "section"}:
        return (
            f"{column} is not corrected in the catalogue, for pairs are made with it or it is measured: ingest the "
            f"section again with a metadata table that says it, or use `histolake lake retile`; {can}."
        )
    return f"{column!r} cannot be corrected; {can}."


def correct_rows(version: int, live: Mapping[str, Sequence[dict[str, Any]]], changes: Iterable[Change]) -> list[Any]:
    """The source of the merge that corrects live rows in a version. Raises `ConflictError` where a row is no longer as
    the changes say."""
    wanted: dict[str, list[Change]] = {}
    for change in changes:
        wanted.setdefault(change.slide_id, []).append(change)
    made: list[dict[str, Any]] = []
    for slide_id, mine in wanted.items():
        # A slide may have two live rows: what is published, and a later source that was refused.
        best = min(live[slide_id], key=lambda row: row["status"], default=None)
        moved = [c.column for c in mine if best is None or best[c.column] not in (c.old, c.new)]
        if moved:
            raise ConflictError(f"{', '.join(moved)} of {slide_id} changed in the meantime; look again and repeat.")
        for row in live[slide_id]:
            new = _corrected(row, {c.column: c.new for c in mine})
            if any(new[c.column] != row[c.column] for c in mine):
                retired = {key: row[key] for key in ("ingest_id", "published_in", "slide_id")}
                made += [{**retired, "retired_in": version}, {**new, "published_in": version, "reverted_to": None}]
    return made


def _corrected(row: Mapping[str, Any], values: Mapping[str, str | None]) -> dict[str, Any]:
    """A row with corrected values, and what the source says of them."""
    said = {entry["column"]: entry["said"] for entry in row["corrected"] or []}
    for column in values:
        said.setdefault(column, row[column])
    new = {**row, **values, "first_published": born(row)}
    return {**new, "corrected": _entries(new, said)}


def born(row: Mapping[str, Any]) -> int | None:
    """The version that first published a row's slide; rows of older lakes know only their own."""
    if row["status"] != "published":
        return None
    return row["published_in"] if row.get("first_published") is None else row["first_published"]


def _entries(row: Mapping[str, Any], said: Mapping[str, str | None]) -> list[dict[str, Any]] | None:
    return [{"column": c, "said": value} for c, value in sorted(said.items()) if row[c] != value] or None


def carry(new: dict[str, Any], live: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A row about to be published, with the age of the row that it follows and the corrections which still stand.

    A correction stands where the source now says the same as when it was corrected, or nothing, or the corrected value.
    """
    before = min(live, key=lambda row: row["status"], default=None)
    said = {entry["column"]: entry["said"] for entry in (before and before["corrected"]) or []}
    assert before is not None or not said
    kept = {c: before[c] for c, value in said.items() if before and new.get(c) in (None, value, before[c])}
    ages = [age for row in (*live, new) if (age := born(row)) is not None]
    carried = {**new, **kept, "first_published": min(ages, default=None) if new["status"] == "published" else None}
    return {**carried, "corrected": _entries(carried, {c: said[c] for c in kept})}
