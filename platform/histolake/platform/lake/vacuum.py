"""Vacuum: give back what no version of the lake names.

What goes: fragments, images and embeddings of ingests that the catalogue does not name (dead attempts, and those that
were forgotten), their rejections and leases, old Lance and Delta files, and files that no commit ever named. What
stays: everything of a live lease. A file without a commit goes only if it is older than the oldest live lease and than
the start of this vacuum: it may be a running ingest's, which without its file would still commit, and leave a table
that cannot be read.

The order of looking is the proof: first what was written, then who holds leases, then what the catalogue names. A lease
is taken before anything is written and given back after the catalogue names it, so whatever was seen in the first look
and is neither leased nor named afterwards belongs to nobody.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow.compute as pc

from histolake.platform.lake.leases import Lease, read_leases
from histolake.platform.storage import CLOCK_SLACK_S

if TYPE_CHECKING:
    from histolake.platform.lake.lake import Lake

__all__ = ["Vacuumed", "vacuum"]


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
    started_s = time.time()
    fragment_ids = lake.pairs.fragment_ids()
    pictures = lake.images.files()
    embedded = {ingest_id for name in lake.embeddings.names() for ingest_id in lake.embeddings.ingests(name)}
    rejecting = set(pc.unique(lake.catalog.rejections()["ingest_id"]).to_pylist())

    leases = list(read_leases(lake.root))
    live = [lease for lease in leases if lease.is_live()]
    dead = [lease for lease in leases if not lease.is_live()]

    slides = lake.catalog.slides(["ingest_id", "fragments"])
    named = set(slides["ingest_id"].to_pylist())
    named_fragments = {part["id"] for parts in slides["fragments"].to_pylist() for part in parts or []}

    condemned = [lease for lease in dead if lease.lease_id in named or _condemn(lake, lease)]
    held = {lease.lease_id for lease in leases} - {lease.lease_id for lease in condemned}
    owners = lake.pairs.owners(sorted(fragment_ids - named_fragments))
    orphans = {ingest_id: ids for ingest_id, ids in owners.items() if ingest_id not in named | held}
    lake.pairs.drop(orphans)
    rejections = lake.catalog.delete("rejections", sorted(rejecting - named - held))
    ownerless = [file for owner, files in pictures.items() if owner not in named | held for file in files]
    freed = lake.images.drop(ownerless)
    for lease in condemned:
        lease.remove(lake.root)

    cutoff_s = min([started_s, *(lease.started_s for lease in live)]) - clock_slack_s
    freed += lake.pairs.clean(cutoff_s)
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


def _condemn(lake: Lake, lease: Lease) -> bool:
    """Decide a dead lease's fate; False where its writer sealed it first and may yet be about to publish."""
    return lease.kind == "read" or lease.seal(lake.root, "vacuum") or lease.is_certainly_dead()
