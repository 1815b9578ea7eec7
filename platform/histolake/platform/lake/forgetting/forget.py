"""Forgetting: a slide, a patient or a study is removed from every table and file of the lake, in every version.

Rows go by `ingest_id`, which is random, because the predicates of a deletion stay in the tables' logs. Before anything
goes, the ids are written into the entry that the lake keeps of a forgetting (see `lake.forgotten`), and they leave it
when all is gone: a process that dies at any step leaves what the next `forget` needs to finish (`finish`). Afterwards
version v reads as v without the slides, and says how many are missing.

Other slides may name one as their look-alike; they lose that name. A source that was refused for looking like one may
come in now, so that its refusal goes too. The ids of genes stay, also of genes that only these slides had: they say
what can be measured, not of whom.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from histolake.platform.errors import SlideNotFoundError, UsageError
from histolake.platform.lake.admission import require_conditional_put
from histolake.platform.lake.forgetting.removal import Removal, survey
from histolake.platform.lake.forgotten import begin, finish_entry, forgotten_of, write
from histolake.platform.lake.leases import Lease, read_leases
from histolake.platform.lake.vacuum import condemn
from histolake.platform.lake.versions import floor_of, named_in, notes_naming, tags_of
from histolake.platform.schemas import LOOK_ALIKE, SLIDES
from histolake.platform.storage import PART_PREFIX, Location

if TYPE_CHECKING:
    from histolake.platform.lake.lake import Lake

__all__ = ["Receipt", "find_patient", "finish", "forget", "ingests_of", "plan_forget"]

HALF_WRITTEN_S = 2.0  # a file of a few kilobytes that is not whole after this time is nobody's


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """What was forgotten. `models` are registered models that saw it: they are not changed by forgetting."""

    state: str  # "planned" | "begun" | "done"
    lake: str
    when: str
    asked: str
    slides: list[str]
    ingest_ids: list[str]
    pairs: int
    rejections: int
    catalog_rows: int
    exports: list[str]
    images: int  # overviews and pyramids
    embeddings: int  # rows, over all models
    bytes: int  # of pairs, exports and images
    tables: list[dict[str, Any]]  # what lay where: table, rows, files, bytes
    models: list[str]
    versions: list[str]  # that had them, such as "3 to 7"
    tags: list[str]  # that name one of these versions, with its number
    notes: list[str]  # tags whose note named them: the note is gone
    look_alikes: list[str]  # other slides that named them
    version_before: int
    version_after: int
    live_writers: int  # of the same slides, and compactions: what they leave, only a later run or vacuum removes

    def create(self, place: Location) -> None:
        """Write it as JSON where nothing is yet; raises `UsageError` where something is."""
        if not place.create(self._text().encode()):
            raise UsageError(f"{place} is there already; name another file for the receipt, or move it away.")

    def write(self, place: Location) -> None:
        """Write it as JSON, in place of what is there."""
        place.write_bytes(self._text().encode())

    def _text(self) -> str:
        return json.dumps(asdict(self), indent=1)


@dataclass(frozen=True, kw_only=True)
class _Chosen:
    """What is to be forgotten, and all that is known of it."""

    asked: str
    slides: tuple[str, ...]
    names: frozenset[str]  # slide_ids and patients, as notes may name them
    rows: tuple[dict[str, Any], ...]  # of `catalog/slides`, all versions
    naming: tuple[dict[str, Any], ...]  # rows of other slides that name one of these as a look-alike
    dead: tuple[Lease, ...]
    live_writers: int

    @property
    def ingest_ids(self) -> frozenset[str]:
        """What goes: their ingests, dead attempts at them, and refusals that name them."""
        refused = (row["ingest_id"] for row in self.naming if row["status"] == "refused")
        return frozenset({row["ingest_id"] for row in self.rows} | {lease.lease_id for lease in self.dead} | {*refused})


def find_patient(lake: Lake, text: str) -> tuple[str | None, str]:
    """(study, patient) of `STUDY/PATIENT`, or of a bare patient that one study has.

    Raises `UsageError` where several have it, `SlideNotFoundError` where none has.
    """
    rows = lake.catalog.slides(["study", "patient", "corrected"]).to_pylist()
    known = {(study, patient) for row in rows for study, patient in _names(row) if patient}
    exact = {(study, patient) for study, patient in known if f"{study or ''}/{patient}" == text}
    found = sorted(exact or {(study, patient) for study, patient in known if patient == text}, key=str)
    if not found:
        raise SlideNotFoundError(
            f"{lake.uri} has no patient {text} in any version; `histolake lake slides --all` lists all."
        )
    if len(found) > 1:
        several = ", ".join(f"{study or ''}/{patient}" for study, patient in found)
        raise UsageError(f"--patient {text} may be {several}; name one of them: a patient is of one study.")
    return found[0]


def ingests_of(
    lake: Lake,
    *,
    slide_id: str | None = None,
    patient: tuple[str | None, str] | None = None,
    study: str | None = None,
) -> pa.Table:
    """The catalogue's rows, of all versions, of a slide, of a patient (study, patient) or of a study.

    Raises `SlideNotFoundError` where there is none.
    """
    rows = lake.catalog.slides()
    if slide_id is not None:
        found, asked = rows.filter(pc.equal(rows["slide_id"], slide_id)), f"slide {slide_id}"
    elif patient is not None or study is not None:
        # Before or after a correction: a row also remembers what its source said.
        names = map(_names, rows.select(["study", "patient", "corrected"]).to_pylist())
        if patient is not None:
            mine, asked = [patient in known for known in names], f"patient {_slashed(patient)}"
        else:
            mine, asked = [study in {name for name, _ in known} for known in names], f"study {study}"
        found = rows.filter(pa.array(mine, pa.bool_()))
    else:
        raise UsageError("Say what to forget: a slide, a patient or a study.")
    if found.num_rows == 0:
        raise SlideNotFoundError(f"{lake.uri} has no {asked} in any version; `histolake lake slides --all` lists all.")
    return found


def _slashed(patient: tuple[str | None, str]) -> str:
    return f"{patient[0] or ''}/{patient[1]}"


def _names(row: Mapping[str, Any]) -> set[tuple[str | None, str | None]]:
    """(study, patient) of a row as it is, and as its source says."""
    said = {**row, **{entry["column"]: entry["said"] for entry in row["corrected"] or []}}
    return {(row["study"], row["patient"]), (said["study"], said["patient"])}


def plan_forget(
    lake: Lake,
    *,
    slide_id: str | None = None,
    patient: tuple[str | None, str] | None = None,
    study: str | None = None,
    models: Sequence[str] = (),
) -> Receipt:
    """What forgetting would remove; nothing is done. Raises `SlideNotFoundError`."""
    chosen = _choose(lake, slide_id, patient, study)
    return _receipt(lake, chosen, survey(lake, chosen.ingest_ids, chosen.slides, chosen.dead), models)


def forget(
    lake: Lake,
    *,
    slide_id: str | None = None,
    patient: tuple[str | None, str] | None = None,
    study: str | None = None,
    models: Sequence[str] = (),
) -> Receipt:
    """Remove a slide, a patient or a study from every table and every version, for good.

    `models` names the registered models that saw them, for the receipt. Safe to repeat after a crash at any step.
    """
    require_conditional_put(lake.root)
    finish(lake)
    chosen = _decided(lake, _choose(lake, slide_id, patient, study))
    removal = survey(lake, chosen.ingest_ids, chosen.slides, chosen.dead)
    receipt = _receipt(lake, chosen, removal, models)
    _drop_half_written(lake, chosen.names)
    for name in receipt.notes:
        lake.root.join("tags", f"{name}.json").delete()
    key = _begin(lake, chosen) if chosen.ingest_ids else None
    _unlike(lake, set(chosen.slides))
    freed = removal.run(lake)
    after = lake.version if key is None else _end(lake, key)
    return replace(receipt, state="done", bytes=freed, version_after=after)


def finish(lake: Lake) -> int:
    """Finish the forgettings whose process died; returns how many there were."""
    pending = [entry for entry in forgotten_of(lake.catalog.properties()) if entry.pending]
    for entry in pending:
        # Where the rows are gone that know the slides by name, no other row names them any more. A slide of which some
        # ingests stay is another, of which a refusal went.
        rows = lake.catalog.slides(["slide_id", "ingest_id"]).to_pylist()
        kept = {row["slide_id"] for row in rows if row["ingest_id"] not in entry.pending}
        slides = {row["slide_id"] for row in rows} - kept
        _unlike(lake, slides)
        survey(lake, entry.pending, slides).run(lake)
        _end(lake, entry.key)
    return len(pending)


def _choose(lake: Lake, slide_id: str | None, patient: tuple[str | None, str] | None, study: str | None) -> _Chosen:
    everything = lake.catalog.slides().drop_columns(["profile_sketch", "scales", "given"]).to_pylist()
    try:
        found = ingests_of(lake, slide_id=slide_id, patient=patient, study=study).to_pylist()
        slides = {row["slide_id"] for row in found}
    except SlideNotFoundError:
        # It may still be named as a look-alike, by a slide that came in while it was forgotten.
        if not any(slide_id in (row["look_alikes"] or ()) for row in everything):
            raise
        found, slides = [], {str(slide_id)}
    # A slide's earlier attempts are found by its name too: before a correction it may have had another patient.
    mine = [row for row in everything if row["slide_id"] in slides]
    naming = [row for row in everything if row["slide_id"] not in slides and slides & {*(row["look_alikes"] or ())}]
    patients = {name for row in mine for _, name in _names(row) if name}
    leases = [lease for lease in read_leases(lake.root) if _concerns(lease, slides, slides | patients)]
    dead = [lease for lease in leases if not lease.is_live()]
    asked = f"slide {slide_id}" if slide_id else f"patient {_slashed(patient)}" if patient else f"study {study}"
    return _Chosen(
        asked=asked,
        slides=tuple(sorted(slides)),
        names=frozenset(slides | patients),
        rows=tuple(mine),
        naming=tuple(naming),
        dead=tuple(dead),
        live_writers=len(leases) - len(dead),
    )


def _concerns(lease: Lease, slides: set[str], names: set[str]) -> bool:
    """Whether a lease is of an attempt at these slides, or at one that looks like them, or of dead work that names
    them; a compaction may be at any slide."""
    record = (lease.plan or {}).get("record", {})
    if lease.slide_id in slides or not slides.isdisjoint(record.get("look_alikes") or ()):
        return True
    return named_in(lease.purpose, names) if not lease.is_live() else lease.kind == "rewrite"


def _decided(lake: Lake, chosen: _Chosen) -> _Chosen:
    """With the fate of dead attempts decided, so that a writer that was only slow cannot publish any more. What an
    adopter is about to publish is a live writer's. An attempt that was published goes with its row."""
    named = {row["ingest_id"] for row in chosen.rows}
    dead = tuple(lease for lease in chosen.dead if lease.lease_id in named or condemn(lake, lease))
    return replace(chosen, dead=dead, live_writers=chosen.live_writers + len(chosen.dead) - len(dead))


def _drop_half_written(lake: Lake, names: frozenset[str]) -> None:
    """Remove leases and notes that name them and whose writer died in the middle of writing. One that is being written
    now is waited for: it becomes whole, or it is nobody's."""
    for folder in (lake.root.join("leases"), lake.root.join("tags")):
        for entry in folder.entries():
            if not entry.location.name.startswith(PART_PREFIX):
                continue
            time.sleep(max(0.0, entry.modified_s + HALF_WRITTEN_S - folder.clock_s()))
            try:
                half = entry.location.read_bytes().decode(errors="replace")
            except FileNotFoundError:  # it is whole, under its own name
                continue
            if named_in(half, names):
                entry.location.delete()


def _receipt(lake: Lake, chosen: _Chosen, removal: Removal, models: Sequence[str]) -> Receipt:
    table = lake.catalog.table("slides")
    properties, newest = lake.catalog.properties(table), table.version()
    floor = floor_of(properties)
    spans = [
        (max(row["published_in"], floor), newest if row["retired_in"] is None else row["retired_in"] - 1)
        for row in chosen.rows
        if row["status"] == "published"
    ]
    held = {entry.table: entry for entry in removal.held}
    refused = sum(row["n_rejections"] or 0 for row in chosen.naming if row["status"] == "refused")
    return Receipt(
        state="planned",
        lake=lake.uri,
        when=datetime.now(UTC).isoformat(timespec="seconds"),
        asked=chosen.asked,
        slides=list(chosen.slides),
        ingest_ids=sorted(chosen.ingest_ids),
        pairs=sum({row["ingest_id"]: row["n_pairs"] or 0 for row in chosen.rows}.values()),
        rejections=held["catalog/rejections"].rows - refused,
        catalog_rows=len(chosen.rows),
        exports=[folder.name for folder in removal.exports],
        images=held["images"].files,
        embeddings=sum(entry.rows for entry in removal.held if entry.table.startswith("embeddings/")),
        bytes=sum(entry.bytes for entry in removal.held),
        tables=[asdict(entry) for entry in removal.held if entry.rows or entry.files],
        models=list(models),
        versions=[str(a) if a == b else f"{a} to {b}" for a, b in _joined(spans)],
        tags=[
            f"{tag.name} ({tag.version})"
            for tag in tags_of(properties).values()
            if any(first <= tag.version <= last for first, last in spans)
        ],
        notes=notes_naming(lake, chosen.names),
        look_alikes=sorted({row["slide_id"] for row in chosen.naming}),
        version_before=newest,
        version_after=newest,
        live_writers=chosen.live_writers,
    )


def _joined(spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Runs of versions that touch, as one."""
    joined: list[tuple[int, int]] = []
    for first, last in sorted(span for span in spans if span[0] <= span[1]):
        if joined and first <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(last, joined[-1][1]))
        else:
            joined.append((first, last))
    return joined


def _begin(lake: Lake, chosen: _Chosen) -> str:
    """Write down what must go, before anything does; returns the entry's key."""
    when = datetime.now(UTC).isoformat(timespec="seconds")
    key: list[str] = []

    def change(newest: int, properties: dict[str, str]) -> dict[str, str]:
        entries, key[:] = begin(forgotten_of(properties), chosen.rows, chosen.ingest_ids, when)
        return write(entries)

    lake.catalog.change_properties(change, {"did": "forgotten"})
    return key[0]


def _end(lake: Lake, key: str) -> int:
    """Note that all of it is gone; returns the lake version in which that is known."""

    def change(newest: int, properties: dict[str, str]) -> dict[str, str]:
        return write(finish_entry(forgotten_of(properties), key, newest))

    return lake.catalog.change_properties(change, {"did": "forgotten"})


def _unlike(lake: Lake, slides: set[str]) -> None:
    """Take slides out of the look-alikes of others that are published."""
    columns = ["slide_id", "ingest_id", "published_in", "status", "look_alikes", "flags"]
    changed = [
        {
            "ingest_id": row["ingest_id"],
            "published_in": row["published_in"],
            "look_alikes": (left := [other for other in row["look_alikes"] if other not in slides]),
            "flags": [flag for flag in row["flags"] or [] if left or flag != LOOK_ALIKE],
        }
        for row in lake.catalog.slides(columns).to_pylist()
        if row["status"] == "published" and row["slide_id"] not in slides and slides & {*(row["look_alikes"] or ())}
    ]
    if changed:
        fields = [SLIDES.field(name) for name in ("ingest_id", "published_in", "look_alikes", "flags")]
        lake.catalog.amend(pa.Table.from_pylist(changed, schema=pa.schema(fields)))
