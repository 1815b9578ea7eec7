"""Forgetting: a slide or a patient is removed from every table and file of the lake, in every version.

Rows go by `ingest_id`, which is random, because the predicates of a deletion stay in the tables' logs. Afterwards
version v reads as v without them. The receipt, which does name them, is written outside the lake.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from histolake.platform.cache import drop
from histolake.platform.errors import SlideNotFoundError, UsageError
from histolake.platform.lake.admission import require_conditional_put
from histolake.platform.lake.leases import Lease, read_leases
from histolake.platform.schemas import LOOK_ALIKE, SLIDES
from histolake.platform.storage import CLOCK_SLACK_S, Location

if TYPE_CHECKING:
    from histolake.platform.lake.lake import Lake

__all__ = ["Receipt", "forget", "ingests_of"]


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """What was forgotten. `models` are registered models that saw it: they are not changed by forgetting."""

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
    models: list[str]
    version_before: int
    version_after: int
    live_writers: int  # whose unfinished files, if they hold the same slide, only a later vacuum removes

    def write(self, place: Location) -> None:
        """Write the receipt as JSON."""
        place.write_bytes(json.dumps(asdict(self), indent=1).encode())


def ingests_of(lake: Lake, *, slide_id: str | None = None, patient: tuple[str, str] | None = None) -> pa.Table:
    """The catalogue's rows, of all versions, of a slide or of a patient (study, patient).

    Raises `SlideNotFoundError` where there is none.
    """
    rows = lake.catalog.slides()
    if slide_id is not None:
        found, asked = rows.filter(pc.equal(rows["slide_id"], slide_id)), f"slide {slide_id}"
    elif patient is not None:
        # Before or after a correction: a row also remembers what its source said.
        mine = [patient in _names(row) for row in rows.select(["study", "patient", "corrected"]).to_pylist()]
        found, asked = rows.filter(pa.array(mine, pa.bool_())), f"patient {'/'.join(patient)}"
    else:
        raise UsageError("Say what to forget: a slide or a patient.")
    if found.num_rows == 0:
        raise SlideNotFoundError(f"{lake.uri} has no {asked} in any version; `histolake lake slides --all` lists all.")
    return found


def _names(row: dict[str, Any]) -> set[tuple[str | None, str | None]]:
    """(study, patient) of a row as it is, and as its source says."""
    said = row | {entry["column"]: entry["said"] for entry in row["corrected"] or []}
    return {(row["study"], row["patient"]), (said["study"], said["patient"])}


def forget(
    lake: Lake,
    *,
    slide_id: str | None = None,
    patient: tuple[str, str] | None = None,
    models: list[str] | None = None,
) -> Receipt:
    """Remove a slide or a patient from every table and every version, for good.

    `models` names the registered models that saw them, for the receipt. Safe to repeat after a crash.
    """
    require_conditional_put(lake.root)
    rows = ingests_of(lake, slide_id=slide_id, patient=patient)
    slides = sorted(set(rows["slide_id"].to_pylist()))
    # A slide's earlier attempts are found by its name too: before a correction it may have had another patient.
    everything = lake.catalog.slides(["slide_id", "ingest_id", "n_pairs", "fragments", "image"])
    mine = everything.filter(pc.is_in(everything["slide_id"], pa.array(slides)))
    ingest_ids = set(mine["ingest_id"].to_pylist())

    twins = _unlike(lake, set(slides))
    leases = [lease for lease in read_leases(lake.root) if lease.slide_id in slides or _resembles(lease, slides)]
    dead = [lease for lease in leases if not lease.is_live()]
    ingest_ids |= {lease.lease_id for lease in dead}

    before = lake.version
    exports, freed = _drop_exports(lake, ingest_ids)
    fragments: dict[str, list[int]] = {}
    for row in mine.to_pylist():
        fragments.setdefault(row["ingest_id"], []).extend(part["id"] for part in row["fragments"] or [])
    for owner, ids in lake.pairs.owners(sorted(lake.pairs.fragment_ids() - _named_fragments(everything))).items():
        if owner in ingest_ids:
            fragments.setdefault(owner, []).extend(ids)
    images, freed_images = _drop_images(lake, ingest_ids)
    # An image that lay inside another file has a copy in this machine's cache; other machines' copies age.
    freed_images += sum(drop(uri) for uri in set(mine["image"].to_pylist()) if uri)
    embeddings = lake.embeddings.drop(ingest_ids)
    # The catalogue goes last, so that a repeat after a crash still finds what to forget.
    lake.pairs.drop({owner: ids for owner, ids in fragments.items() if ids})
    rejections = lake.catalog.delete("rejections", sorted(ingest_ids | twins)) - len(twins)
    catalog_rows = lake.catalog.delete("slides", sorted(ingest_ids | twins)) - len(twins)
    for lease in dead:
        lease.remove(lake.root)
    freed += freed_images + _clean(lake)
    return Receipt(
        lake=lake.uri,
        when=datetime.now(UTC).isoformat(timespec="seconds"),
        asked=f"slide {slide_id}" if slide_id else f"patient {'/'.join(patient or ())}",
        slides=slides,
        ingest_ids=sorted(ingest_ids),
        pairs=sum(n or 0 for n in _pairs_by_ingest(mine).values()),
        rejections=rejections,
        catalog_rows=catalog_rows,
        exports=exports,
        images=images,
        embeddings=embeddings,
        bytes=freed,
        models=models or [],
        version_before=before,
        version_after=lake.version,
        live_writers=len(leases) - len(dead),
    )


def _unlike(lake: Lake, slides: set[str]) -> set[str]:
    """Take slides out of the look-alikes of the others. Returns the ingests that were refused for being one of them:
    their reason names it, and they may come in now."""
    columns = ["slide_id", "ingest_id", "published_in", "status", "look_alikes", "flags"]
    rows = lake.catalog.slides(columns).to_pylist()
    naming = [row for row in rows if row["slide_id"] not in slides and slides.intersection(row["look_alikes"] or ())]
    changed = [
        {
            "ingest_id": row["ingest_id"],
            "published_in": row["published_in"],
            "look_alikes": (left := [other for other in row["look_alikes"] if other not in slides]),
            "flags": [flag for flag in row["flags"] or [] if left or flag != LOOK_ALIKE],
        }
        for row in naming
        if row["status"] == "published"
    ]
    if changed:
        fields = [SLIDES.field(name) for name in ("ingest_id", "published_in", "look_alikes", "flags")]
        lake.catalog.amend(pa.Table.from_pylist(changed, schema=pa.schema(fields)))
    return {row["ingest_id"] for row in naming if row["status"] == "refused"}


def _resembles(lease: Lease, slides: Sequence[str]) -> bool:
    """Whether an attempt at another slide names one of these as its look-alike."""
    record = (lease.plan or {}).get("record", {})
    return not set(slides).isdisjoint(record.get("look_alikes") or ())


def _pairs_by_ingest(rows: pa.Table) -> dict[str, int]:
    return {row["ingest_id"]: row["n_pairs"] for row in rows.select(["ingest_id", "n_pairs"]).to_pylist()}


def _named_fragments(rows: pa.Table) -> set[int]:
    return {part["id"] for parts in rows["fragments"].to_pylist() for part in parts or []}


def _clean(lake: Lake) -> int:
    """Remove the files that still hold what was deleted; returns the bytes of pairs freed."""
    started_s = time.time()
    live = [lease for lease in read_leases(lake.root) if lease.is_live()]
    cutoff_s = min(lease.started_s for lease in live) - CLOCK_SLACK_S if live else started_s
    for name in ("slides", "rejections"):
        lake.catalog.clean(name, cutoff_s)
    return lake.pairs.clean(cutoff_s)


def _drop_images(lake: Lake, ingest_ids: set[str]) -> tuple[int, int]:
    """Remove the images of these ingests, and of attempts that nothing names: they may be of the same slides. Images
    are listed before leases and catalogue are read, so that what belongs to a writer is known to."""
    files = lake.images.files()
    held = {lease.lease_id for lease in read_leases(lake.root)}
    named = set(lake.catalog.slides(["ingest_id"])["ingest_id"].to_pylist())
    gone = [
        file for owner, found in files.items() if owner in ingest_ids or owner not in held | named for file in found
    ]
    return len(gone), lake.images.drop(gone)


def _drop_exports(lake: Lake, ingest_ids: set[str]) -> tuple[list[str], int]:
    """Remove the exports below the lake that hold any of these ingests, whole."""
    dropped, freed = [], 0
    for folder in lake.root.join("exports").list():
        manifest: dict[str, Any] = json.loads(folder.join("manifest.json").read_bytes())
        if ingest_ids.intersection(manifest["ingest_ids"]):
            freed += sum(entry.size_bytes for entry in folder.entries())
            folder.delete()
            dropped.append(folder.name)
    return dropped, freed
