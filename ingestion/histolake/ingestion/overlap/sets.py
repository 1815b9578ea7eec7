"""What a person calls a set of slides: one word of the form KIND:WHAT.

all                     every slide of the lake's version
where:SQL               those for which a condition over the catalogue's columns is true
slides:A,B  slides:@FILE  those named, in the word or one a line in a file
split:FILE#SIDE         a side of a split file (train, if none is named)
version:N               every slide of another version, by its number or its tag
model:NAME@ALIAS#SIDE   those that a registered model trained on (or saw on another side), from its lineage
lake:URI#SET            a set of another lake; all of it, if none is named

Each slide becomes a row with what is known of it: names, ids and digest, study, accession and patient, sketch and
picture hash. Of a model's slides that the lake has lost, the lineage's words are left.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from histolake.platform.errors import HistolakeError, SlideNotFoundError, UsageError
from histolake.platform.splits import BLOCKS, SIDES
from histolake.platform.splits.commands import read_split

if TYPE_CHECKING:
    from histolake.platform.lake import Lake, Snapshot
    from histolake.platform.tracking import TrackingSettings

__all__ = ["SlideSet", "read_set"]

KINDS = ("all", "where", "slides", "split", "version", "model", "lake")
COLUMNS = [
    *("slide_id", "ingest_id", "cohort", "study", "accession", "patient", "source_digest"),
    *("look_alikes", "profile_sketch", "image_hash"),
]


@dataclass(frozen=True, kw_only=True)
class SlideSet:
    """Some slides, and where they are from."""

    name: str  # as it was asked for
    slides: list[dict[str, Any]]  # COLUMNS and `lake`, its URI
    notes: list[str] = field(default_factory=list)  # what could not be looked up


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where sets are read from."""

    open_lake: Callable[[], Lake]
    version: int | str | None  # a number or a tag; the newest for None
    tracking: TrackingSettings

    def snapshot(self) -> Snapshot:
        """The lake's version that is meant."""
        return self.open_lake().at(self.version)


def read_set(text: str, source: Source) -> SlideSet:
    """The slides that a word names. Raises `UsageError` for one that names none."""
    kind, _, what = text.partition(":")
    if kind not in KINDS or (kind != "all" and not what):
        raise UsageError(
            f"{text!r} names no set of slides; write one of all, where:SQL, slides:A,B, split:FILE#SIDE, version:N, "
            "model:NAME@ALIAS or lake:URI."
        )
    if kind == "lake":
        return _in_lake(text, what, source)
    if kind == "model":
        return _of_model(text, what, source)
    if kind == "version":
        found = _rows(replace(source, version=what).snapshot())
    elif kind == "where":
        found = _rows(source.snapshot(), where=what)
    elif kind == "split":
        found = _on_side(what, source.snapshot())
    elif kind == "slides":
        found = _listed(what, source.snapshot())
    else:
        found = _rows(source.snapshot())
    return _some(SlideSet(name=text, slides=found))


def _rows(snapshot: Snapshot, where: str | None = None) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = snapshot.slides(where=where).select(COLUMNS).to_pylist()
    return [{**row, "lake": snapshot.lake.uri} for row in rows]


def _some(found: SlideSet) -> SlideSet:
    if not found.slides:
        raise UsageError(f"{found.name!r} names no slide; nothing can be said of an empty set.")
    return found


def _listed(what: str, snapshot: Snapshot) -> list[dict[str, Any]]:
    if what.startswith("@"):
        try:
            lines = Path(what[1:]).read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise UsageError(f"The list {what[1:]} cannot be read: {error.strerror}.") from error
    else:
        lines = what.split(",")
    wanted = {line.strip() for line in lines} - {""}
    found = [row for row in _rows(snapshot) if row["slide_id"] in wanted]
    gone = sorted(wanted - {row["slide_id"] for row in found})
    if gone:
        raise SlideNotFoundError(
            f"Version {snapshot.version} of {snapshot.lake.uri} has no slide {', '.join(gone[:10])}; "
            "`histolake lake slides` lists what it has."
        )
    return found


def _on_side(what: str, snapshot: Snapshot) -> list[dict[str, Any]]:
    file, side = _with_side(what)
    sides = read_split(Path(file)).assign(snapshot.slides())
    return [row for row in _rows(snapshot) if sides[row["slide_id"]] in (side, BLOCKS)]


def _with_side(what: str) -> tuple[str, str]:
    file, _, side = what.partition("#")
    side = side or "train"
    if side not in SIDES:
        raise UsageError(f"{what!r} asks for the side {side!r}; it is {', '.join(SIDES[:-1])} or {SIDES[-1]}.")
    return file, side


def _in_lake(text: str, what: str, source: Source) -> SlideSet:
    from histolake.platform.lake import Lake

    uri, _, inner = what.partition("#")
    if inner.startswith(("lake:", "model:")):
        raise UsageError(f"{text!r} names a set in a lake that is not of that lake; write {inner!r} alone.")
    there = replace(source, open_lake=lambda: Lake.open(uri), version=None)
    return replace(read_set(inner or "all", there), name=text)


def _of_model(text: str, what: str, source: Source) -> SlideSet:
    """The slides that a model saw, as its lake knows them now; in the lineage's words where it does not."""
    from histolake.platform.tracking import lineage

    model, side = _with_side(what)
    seen = [row for row in lineage(model, source.tracking) if row["side"] in (side, BLOCKS)]
    if not seen:
        raise UsageError(f"{model} saw no slide on the side {side}; `histolake models lineage` tells what it saw.")
    known, notes = _known_now(seen[0]["lake_uri"], {row["ingest_id"] for row in seen})
    lost = sorted(row["slide_id"] for row in seen if row["ingest_id"] not in known)
    if lost and not notes:
        notes = [f"{len(lost)} slides of {model} are no longer in its lake, and are known by name only: {lost[0]} ..."]
    bare = dict.fromkeys(COLUMNS)
    rows = [
        known.get(row["ingest_id"])
        or {**bare, **{key: row[key] for key in COLUMNS if key in row}, "lake": row["lake_uri"]}
        for row in seen
    ]
    return SlideSet(name=text, slides=rows, notes=notes)


def _known_now(lake_uri: str, ingest_ids: set[str]) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """ingest_id -> its newest row, whether it is still live or not: a correction since then counts."""
    from histolake.platform.lake import Lake

    try:
        rows = Lake.open(lake_uri).catalog.slides([*COLUMNS, "published_in"]).to_pylist()
    except HistolakeError as error:
        return {}, [f"The lake of the model cannot be read, so that its slides are known by name only: {error}"]
    rows = sorted((row for row in rows if row["ingest_id"] in ingest_ids), key=lambda row: row["published_in"])
    return {row["ingest_id"]: {**row, "lake": lake_uri} for row in rows}, []
