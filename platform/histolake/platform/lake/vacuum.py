"""Vacuum: give back what no version of the lake names.

What goes: fragments, images and embeddings of ingests that the catalogue does not name (dead attempts, and those that
were forgotten), their rejections and leases, old Lance and Delta files, files that no commit ever named, and uploads
that were never completed. What stays: everything of a live lease. A file without a commit goes only if it is older than
the oldest live lease and than the start of this vacuum: it may be a running ingest's, which without its file would
still commit, and leave a table that cannot be read.

The order of looking is the proof: first what was written, then who holds leases, then what the catalogue names. A lease
is taken before anything is written and given back after the catalogue names it, so whatever was seen in the first look
and is neither leased nor named afterwards belongs to nobody.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow.compute as pc

from histolake.platform.lake.admission import require_conditional_put
from histolake.platform.lake.leases import SILENT_S, Lease, Seal, read_leases
from histolake.platform.lake.leftovers import abort_uploads
from histolake.platform.storage import CLOCK_SLACK_S, PART_PREFIX

if TYPE_CHECKING:
    from histolake.platform.lake.lake import Lake

__all__ = ["Vacuumed", "condemn", "vacuum"]

SEAL_KEPT_S = 24 * 3600.0
FENCE = "histolake.fence"  # a property of the catalogue that is only ever set


@dataclass(frozen=True, kw_only=True)
class Vacuumed:
    """What a vacuum removed."""

    dead_attempts: int
    fragments: int
    rejections: int
    images: int  # files
    embeddings: int  # rows
    bytes: int  # of pairs and images
    catalog_files: int
    live_leases: int  # that held it back


def vacuum(lake: Lake, *, clock_slack_s: float = CLOCK_SLACK_S) -> Vacuumed:
    """Remove what no version names and no live lease holds."""
    require_conditional_put(lake.root)
    started_s = lake.root.join("leases").clock_s()
    fragment_ids = lake.pairs.fragment_ids()
    pictures = lake.images.files()
    embedded = {ingest_id for name in lake.embeddings.names() for ingest_id in lake.embeddings.ingests(name)}
    rejecting = set(pc.unique(lake.catalog.rejections()["ingest_id"]).to_pylist())

    leases = list(read_leases(lake.root))
    live = [lease for lease in leases if lease.is_live()]
    dead = [lease for lease in leases if not lease.is_live()]
    sealed = {lease.lease_id for lease in dead if condemn(lake, lease)}

    slides = lake.catalog.slides(["ingest_id", "fragments"])
    named = set(slides["ingest_id"].to_pylist())
    listed = [[part["id"] for part in parts or []] for parts in slides["fragments"].to_pylist()]
    named_fragments = {fragment for each in listed for fragment in each}
    # Rows that `compact` has moved, and not yet entered in the catalogue, are of no orphan.
    names = zip(slides["ingest_id"].to_pylist(), listed, strict=True)
    moved = {ingest_id for ingest_id, each in names if not fragment_ids.issuperset(each)}

    condemned = [lease for lease in dead if lease.lease_id in named | sealed]
    held = {lease.lease_id for lease in leases} - {lease.lease_id for lease in condemned}
    owners = lake.pairs.owners(sorted(fragment_ids - named_fragments))
    orphans = {ingest_id: ids for ingest_id, ids in owners.items() if ingest_id not in held | moved}
    lake.pairs.drop(orphans)
    rejections = lake.catalog.delete("rejections", sorted(rejecting - named - held))
    ownerless = [file for owner, files in pictures.items() if owner not in named | held for file in files]
    freed = lake.images.drop(ownerless)
    for lease in condemned:
        lease.remove(lake.root, with_seal=lease.is_here)
    _sweep(lake)

    cutoff_s = min([started_s, *(lease.started_s for lease in live)]) - clock_slack_s
    freed += lake.pairs.clean(cutoff_s)
    abort_uploads(lake.root, cutoff_s)
    embeddings = lake.embeddings.drop(embedded - named - held, cutoff_s)
    files = sum(lake.catalog.clean(name, cutoff_s) for name in ("slides", "rejections", "genes"))
    return Vacuumed(
        dead_attempts=sum(lease.kind == "write" for lease in condemned),
        fragments=sum(map(len, orphans.values())),
        rejections=rejections,
        images=len(ownerless),
        embeddings=embeddings,
        bytes=freed,
        catalog_files=files,
        live_leases=len(live),
    )


def condemn(lake: Lake, lease: Lease) -> bool:
    """Decide a dead lease's fate; False where its writer, or one that adopted it, sealed it first and may yet be about
    to publish.

    A seal whose maker was silent for very long is taken over: then a commit to the catalogue makes that maker's own,
    had it begun, lose its race, and it finds the seal another's when it looks again.
    """
    if lease.kind != "write" or lease.seal(lake.root, "vacuum"):
        return True
    place = lease.seal_location(lake.root)
    seal = Seal.read(place)
    if seal is None:  # its maker published and gave everything back in the meantime
        return False
    if seal.by == "vacuum":
        return True
    if seal.is_here:
        return not seal.is_running
    age_s = lake.root.join("leases").clock_s() - place.modified_s()
    if not lease.is_certainly_dead() or age_s < SILENT_S:
        return False
    place.write_bytes(Seal(by="vacuum").encode())
    fence = {FENCE: uuid.uuid4().hex}
    lake.catalog.change_properties(lambda version, held: fence)
    return True


def _sweep(lake: Lake) -> None:
    """Remove seals without a lease, and leases half written. A vacuum's seal stays for a while where its attempt was
    another machine's: it may come back."""
    folder = lake.root.join("leases")
    now_s, entries = folder.clock_s(), list(folder.entries(recursive=False))
    leases = {entry.location.name.removesuffix(".json") for entry in entries if entry.location.suffix == ".json"}
    for entry in entries:
        name, age_s = entry.location.name, now_s - entry.modified_s
        if name.startswith(PART_PREFIX):
            gone = age_s > SILENT_S
        elif entry.location.suffix == ".seal" and name.removesuffix(".seal") not in leases:
            seal = Seal.read(entry.location)
            own = seal is not None and seal.by != "vacuum" and seal.is_here and not seal.is_running
            gone = own or age_s > SEAL_KEPT_S
        else:
            continue
        if gone:
            entry.location.delete()
