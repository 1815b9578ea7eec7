"""Expiring: versions below a floor are given up, and what only they held goes.

Refused are versions that somebody still counts on: a registered model, a tag, or a reader at work. The order of the
steps is what makes that hold against those who come meanwhile:

1. the pins are looked at, so that most refusals cost nothing;
2. the floor is set, in a commit that looks at the tags of the very version it follows. Any two commits of the catalogue
   conflict, so a tag is either seen by it, or is set after it, and then sees the floor and is refused;
3. leases and registered models are looked at again, in this order. A reader writes its lease before it looks at the
   floor (`Snapshot.reading`), so one that is not seen here will see the floor and stop; a model is registered under its
   trainer's lease, so it is seen by one look or the other. Where a pin is found the floor goes back to where it was:
   nothing has been deleted yet;
4. rejections of ingests that no kept version has go, then the rows that were retired at or before the floor. The
   predicate that stays in the log is a number. Fragments, images and embeddings of these ingests are then named by
   nothing, and vacuum gives them back.

A process that dies after 2 leaves versions that cannot be read and are not yet deleted; the same command again does the
rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from histolake.platform.errors import VersionError
from histolake.platform.lake.forgotten import forgotten_of, outlived
from histolake.platform.lake.forgotten import write as write_forgotten
from histolake.platform.lake.leases import read_leases
from histolake.platform.lake.versions import FLOOR, floor_of, tags_of

if TYPE_CHECKING:
    from histolake.platform.lake.lake import Lake

__all__ = ["Expiry", "Pin", "expire", "pins_below", "plan_expiry"]


@dataclass(frozen=True, kw_only=True)
class Pin:
    """Somebody who counts on a version."""

    version: int
    kind: str  # "model" | "tag" | "reader"
    name: str

    def __str__(self) -> str:
        return f"version {self.version} is pinned by {self.kind} {self.name}"


Models = Callable[[], Iterable[Pin]]  # the registered models of the lake, with the versions that they were trained on


@dataclass(frozen=True, kw_only=True)
class Expiry:
    """What expiring versions would take."""

    before: int
    floor: int  # now
    versions: int  # that would no longer be read
    slides: int  # rows of slides, published or refused, that only they have
    ingests: int  # whose pairs, images and embeddings vacuum then gives back
    pairs: int
    rejections: int
    pins: tuple[Pin, ...]


def pins_below(lake: Lake, before: int, models: Models) -> tuple[Pin, ...]:
    """Who counts on versions below one, the lowest version first."""
    tagged = [Pin(version=t.version, kind="tag", name=t.name) for t in tags_of(lake.catalog.properties()).values()]
    found = [*tagged, *_readers(lake), *models()]
    return tuple(sorted((pin for pin in found if pin.version < before), key=lambda pin: (pin.version, pin.name)))


def plan_expiry(lake: Lake, before: int | str, models: Models) -> Expiry:
    """What `expire` would do. Raises `VersionError` for a version that is not there or was expired."""
    number = lake.resolve(before)
    floor = floor_of(lake.catalog.properties())
    gone, ingest_ids = _outlived(lake, number)
    pairs = {row["ingest_id"]: row["n_pairs"] or 0 for row in gone if row["ingest_id"] in ingest_ids}
    refused = {row["ingest_id"]: row["n_rejections"] or 0 for row in gone if row["ingest_id"] in ingest_ids}
    return Expiry(
        before=number,
        floor=floor,
        versions=number - floor,
        slides=len(gone),
        ingests=len(ingest_ids),
        pairs=sum(pairs.values()),
        rejections=sum(refused.values()),
        pins=pins_below(lake, number, models),
    )


def expire(lake: Lake, before: int | str, models: Models) -> Expiry:
    """Give up the versions below `before`; returns what went. Safe to repeat after a crash at any step.

    Raises `VersionError` where one of them is pinned, naming by whom.
    """
    planned = plan_expiry(lake, before, models)
    _require_free(lake, planned.pins)
    previous = _raise_floor(lake, planned.before)
    pins = [pin for pin in (*_readers(lake), *models()) if pin.version < planned.before]
    if pins:
        _lower_floor(lake, planned.before, previous)
        _require_free(lake, pins)
    _, ingest_ids = _outlived(lake, planned.before)
    lake.catalog.delete("rejections", sorted(ingest_ids), {"did": "expired", "before": planned.before})
    if planned.slides:
        lake.catalog.delete_retired(planned.before, {"did": "expired", "before": planned.before})
    return planned


def _readers(lake: Lake) -> list[Pin]:
    return [
        Pin(version=lease.version, kind="reader", name=f"{lease.purpose!r} (process {lease.pid})")
        for lease in read_leases(lake.root)
        if lease.kind == "read" and lease.version is not None and lease.is_live()
    ]


def _require_free(lake: Lake, pins: Iterable[Pin]) -> None:
    told = "; ".join(map(str, pins))
    if told:
        raise VersionError(f"{lake.uri} keeps its versions: {told}. Expire less, or remove what pins them.")


def _raise_floor(lake: Lake, before: int) -> int:
    """Set the floor; returns where it was."""
    was: list[int] = []

    def change(newest: int, properties: dict[str, str]) -> dict[str, str]:
        floor = floor_of(properties)
        tagged = [Pin(version=t.version, kind="tag", name=t.name) for t in tags_of(properties).values()]
        _require_free(lake, [pin for pin in tagged if floor <= pin.version < before])
        was[:] = was or [floor]
        if floor >= before:
            return {}
        return {FLOOR: str(before), **write_forgotten(outlived(forgotten_of(properties), before))}

    lake.catalog.change_properties(change, {"did": "expired", "before": before})
    return was[0]


def _lower_floor(lake: Lake, mine: int, previous: int) -> None:
    """Put the floor back, unless another expiry has moved it since."""

    def change(newest: int, properties: dict[str, str]) -> dict[str, str]:
        return {FLOOR: str(previous) if previous else ""} if floor_of(properties) == mine else {}

    lake.catalog.change_properties(change, {"did": "kept", "from": previous})


def _outlived(lake: Lake, floor: int) -> tuple[list[dict[str, Any]], set[str]]:
    """The rows that no version from the floor on has, and the ingests that no other row names."""
    columns = ["ingest_id", "retired_in", "n_pairs", "n_rejections"]
    rows = lake.catalog.slides(columns).to_pylist()
    gone = [row for row in rows if row["retired_in"] is not None and row["retired_in"] <= floor]
    kept = {row["ingest_id"] for row in rows if row["retired_in"] is None or row["retired_in"] > floor}
    return gone, {row["ingest_id"] for row in gone} - kept
