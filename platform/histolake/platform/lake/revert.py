"""Reverting: a new version whose slides are those of an earlier one.

Nothing is rewritten. Rows that the earlier version had and the newest has not are inserted again, with the same
`ingest_id` and so the same pairs, and what came since is retired: one commit of the catalogue. Every version in between
can be read as before, so a revert is undone by another. It undoes ingests, replacements, refusals and corrections; what
was forgotten stays forgotten, for its rows are in no version, and a version that was expired cannot be gone back to.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version as package_version
from typing import TYPE_CHECKING, Any

from histolake.platform.errors import ConflictError, SlideNotFoundError
from histolake.platform.lake.correct import born
from histolake.platform.lake.diff import Difference, diff
from histolake.platform.lake.snapshot import Snapshot

if TYPE_CHECKING:
    from histolake.platform.lake.lake import Lake

__all__ = ["Reversion", "plan_revert", "revert"]

# What differs between a row and the same row inserted again.
_OF_THE_VERSION = ("published_in", "retired_in", "when", "software", "first_published", "reverted_to")


@dataclass(frozen=True, kw_only=True)
class Reversion:
    """What going back to a version would change. Made by `plan_revert`."""

    to: int
    newest: int
    where: str | None
    slide_ids: tuple[str, ...] | None  # asked for by name; None: all
    restored: tuple[dict[str, Any], ...]  # rows to be inserted again
    retired: tuple[dict[str, Any], ...]  # live rows to be retired
    changes: tuple[Difference, ...]  # the same as a person reads it, from the newest version to the new one

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal where the same would be done."""
        rows = [*self.restored, *self.retired]
        return (len(self.restored), *sorted((row["ingest_id"], row["published_in"]) for row in rows))

    def age(self, row: dict[str, Any], version: int) -> int | None:
        """The version from which a restored slide counts among its kin (see `platform.placing`).

        Where all slides go back, so do their ages, and with them the sides of every split. A slide that comes back
        alone, among slides that were placed without it, is as a new one: it may not move them.
        """
        alone = self.where is not None or self.slide_ids is not None
        absent = all(row["slide_id"] != live["slide_id"] for live in self.retired if live["status"] == "published")
        return version if alone and absent and row["status"] == "published" else born(row)


def plan_revert(
    lake: Lake, to: int | str, *, where: str | None = None, slide_ids: Collection[str] | None = None
) -> Reversion:
    """What would change if the slides were again what they are in version `to`; with a filter only slides for which it
    is true there or now, with `slide_ids` only these.

    Raises `VersionError`, `SlideNotFoundError` for a slide that is in neither version, `UsageError`.
    """
    then, now = lake.at(to), lake.at()
    chosen = _chosen(then, now, where, slide_ids)
    before, after = (
        {(row["slide_id"], row["status"]): row for row in found.slides(include_refused=True).to_pylist()}
        for found in (then, now)
    )
    wanted = {key: row for key, row in before.items() if chosen is None or key[0] in chosen}
    live = {key: row for key, row in after.items() if chosen is None or key[0] in chosen}
    touched = {key for key in {*wanted, *live} if _content(wanted.get(key)) != _content(live.get(key))}
    ids = {slide_id for slide_id, _ in touched}
    return Reversion(
        to=then.version,
        newest=now.version,
        where=where,
        slide_ids=None if slide_ids is None else tuple(sorted(slide_ids)),
        restored=tuple(wanted[key] for key in sorted(touched & wanted.keys())),
        retired=tuple(live[key] for key in sorted(touched & live.keys())),
        changes=tuple(change for change in diff(now, then) if change.slide_id in ids),
    )


def revert(lake: Lake, plan: Reversion) -> int:
    """Do what was planned, in one commit; returns the lake version that has it.

    Raises `ConflictError` where the slides changed since: what would be undone is not what was looked at.
    """
    now = {"when": datetime.now(UTC), "software": f"histolake {package_version('histolake')}"}

    def rows(version: int, live: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
        current = plan_revert(lake, plan.to, where=plan.where, slide_ids=plan.slide_ids)
        if not current.restored and not current.retired:
            return []  # as it should be: our commit succeeded though it was answered with an error
        if current.key != plan.key:
            raise ConflictError(f"Slides changed since version {plan.newest}; look again and repeat.")
        retired = [
            {**{key: row[key] for key in ("ingest_id", "published_in", "slide_id")}, "retired_in": version}
            for row in current.retired
        ]
        again = {"published_in": version, "retired_in": None, "reverted_to": plan.to, **now}
        return [*retired, *({**row, **again, "first_published": current.age(row, version)} for row in current.restored)]

    return lake.catalog.commit([], rows, told={"did": "reverted", "to": plan.to})


def _content(row: dict[str, Any] | None) -> dict[str, Any] | None:
    return None if row is None else {name: row[name] for name in row if name not in _OF_THE_VERSION}


def _chosen(
    then: Snapshot, now: Snapshot, where: str | None, slide_ids: Collection[str] | None
) -> frozenset[str] | None:
    """The slides that are meant; None: all."""
    if where is None and slide_ids is None:
        return None
    known, meant = (
        {
            slide_id
            for found in (then, now)
            for slide_id in found.slides(include_refused=True, where=condition)["slide_id"].to_pylist()
        }
        for condition in (None, where)
    )
    missing = sorted(set(slide_ids or ()) - known)
    if missing:
        raise SlideNotFoundError(f"Neither version {then.version} nor {now.version} has {', '.join(missing)}.")
    return frozenset(meant if slide_ids is None else meant & set(slide_ids))
