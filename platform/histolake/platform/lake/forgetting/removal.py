"""Removing ingests from every table and file of the lake, by their random `ingest_id`s alone.

Whoever calls this has written the ids down before (see `lake.forgotten`), so every step may be repeated without a name.
The catalogue's rows go first: whatever is interrupted, every version can be read, without them. Then goes what only the
ids still lead to, and last the old files in which deleted rows still lie.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from histolake.platform.cache import copies, drop
from histolake.platform.lake.leases import Lease, read_leases
from histolake.platform.lake.leftovers import abort_uploads, drop_old_versions
from histolake.platform.lake.vacuum import CLOCK_SLACK_S
from histolake.platform.storage import Entry, Location

if TYPE_CHECKING:
    from histolake.platform.lake.lake import Lake

__all__ = ["Held", "Removal", "exports_of", "survey"]

TOLD = {"did": "forgotten"}
PLANNED = "planned.json"  # of an export that is being written: what its manifest will say of its slides


@dataclass(frozen=True, kw_only=True)
class Held:
    """What one table or folder holds of some ingests. `bytes` are of whole files, 0 where rows share them."""

    table: str
    rows: int = 0
    files: int = 0
    bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class Removal:
    """Some ingests, and where all of them lies. Made by `survey`."""

    ingest_ids: frozenset[str]
    slides: frozenset[str]  # whose files that no table names go too
    fragments: dict[str, list[int]]  # of `pairs.lance`, by ingest_id
    exports: tuple[Location, ...]  # whole folders
    images: tuple[Entry, ...]
    cached: tuple[Path, ...]  # copies of their images on this machine
    leases: tuple[Lease, ...]  # of dead attempts
    held: tuple[Held, ...]

    def run(self, lake: Lake) -> int:
        """Remove it all; returns the bytes freed."""
        freed = sum(drop(str(path)) for path in self.cached)
        lake.catalog.delete("slides", sorted(self.ingest_ids), TOLD)
        lake.catalog.delete("rejections", sorted(self.ingest_ids), TOLD)
        lake.embeddings.drop(self.ingest_ids)
        lake.pairs.drop({owner: ids for owner, ids in self.fragments.items() if ids})
        # A compaction may have moved some since the survey. Those that are dropped by now it cannot move any more.
        lake.pairs.drop(_unlisted(lake, self.ingest_ids, lake.catalog.slides(["fragments"])))
        freed += lake.images.drop(self.images)
        # An export that ends from now on sees that these ingests are gone, and removes itself; others are seen here.
        for folder in exports_of(lake, self.ingest_ids):
            freed += sum(entry.size_bytes for entry in folder.entries())
            folder.delete()
        for lease in self.leases:
            lease.remove(lake.root, with_seal=lease.is_here)  # elsewhere its writer may come back, and must see it
        return freed + clean(lake, self.ingest_ids, self.slides)


def survey(
    lake: Lake, ingest_ids: Collection[str], slides: Collection[str] = (), dead: Iterable[Lease] = ()
) -> Removal:
    """Where some ingests lie: in tables, files and this machine's cache. `dead` are leases that go with them.

    Images are listed before leases and catalogue are read, so that what belongs to a writer is known to.
    """
    ids = frozenset(ingest_ids)
    pictures = lake.images.files()
    leases = list(read_leases(lake.root))
    columns = ["slide_id", "ingest_id", "n_pairs", "fragments", "image", "source"]
    everything = lake.catalog.slides(columns)
    named = set(everything["ingest_id"].to_pylist())
    mine = everything.filter(pc.is_in(everything["ingest_id"], pa.array(sorted(ids), pa.string()))).to_pylist()

    fragments = _fragments(lake, ids, everything, mine)
    # Images of attempts that nothing names may be of the same slides.
    held = {lease.lease_id for lease in leases}
    images = [file for owner, found in pictures.items() if owner in ids or owner not in held | named for file in found]
    exports = exports_of(lake, ids)
    cached = sorted({path for row in mine for uri in (row["image"], row["source"]) if uri for path in copies(uri)})
    return Removal(
        ingest_ids=ids,
        slides=frozenset(slides),
        fragments=fragments,
        exports=tuple(exports),
        images=tuple(images),
        cached=tuple(cached),
        leases=tuple({lease.lease_id: lease for lease in (*dead, *_of(leases, ids))}.values()),
        held=(
            Held(table="catalog/slides", rows=len(mine)),
            Held(table="catalog/rejections", rows=_rejections(lake, ids)),
            _of_fragments(lake, fragments),
            *_embeddings(lake, ids),
            _of_files("images", images),
            _of_files("exports", [entry for folder in exports for entry in folder.entries()]),
            Held(table="cache", files=len(cached), bytes=sum(path.stat().st_size for path in cached)),
        ),
    )


def _of(leases: Iterable[Lease], ids: frozenset[str]) -> Iterator[Lease]:
    return (lease for lease in leases if lease.lease_id in ids and not lease.is_live())


def _fragments(
    lake: Lake, ids: frozenset[str], everything: pa.Table, mine: list[dict[str, Any]]
) -> dict[str, list[int]]:
    fragments: dict[str, list[int]] = {row["ingest_id"]: [p["id"] for p in row["fragments"] or []] for row in mine}
    for owner, found in _unlisted(lake, ids, everything).items():
        fragments.setdefault(owner, []).extend(found)
    return fragments


def _unlisted(lake: Lake, ids: frozenset[str], rows: pa.Table) -> dict[str, list[int]]:
    """Fragments of some ingests that no row of the catalogue lists."""
    listed = {part["id"] for parts in rows["fragments"].to_pylist() for part in parts or []}
    owners = lake.pairs.owners(sorted(lake.pairs.fragment_ids() - listed))
    return {owner: found for owner, found in owners.items() if owner in ids}


def _of_fragments(lake: Lake, fragments: dict[str, list[int]]) -> Held:
    wanted = {fragment_id for ids in fragments.values() for fragment_id in ids}
    parts = [part for part in lake.pairs.open().get_fragments() if part.fragment_id in wanted]
    files = [file for part in parts for file in part.data_files()]
    return Held(
        table="pairs.lance",
        rows=sum(part.count_rows() for part in parts),
        files=len(files),
        bytes=sum(file.file_size_bytes or 0 for file in files),
    )


def _of_files(table: str, entries: Collection[Entry]) -> Held:
    return Held(table=table, files=len(entries), bytes=sum(entry.size_bytes for entry in entries))


def _rejections(lake: Lake, ids: frozenset[str]) -> int:
    owners = lake.catalog.dataset("rejections").to_table(columns=["ingest_id"])["ingest_id"].to_pylist()
    return sum(owner in ids for owner in owners)


def _embeddings(lake: Lake, ids: frozenset[str]) -> list[Held]:
    tables = ((name, lake.embeddings.open(name).ingests()) for name in lake.embeddings.names())
    counted = ((name, sum(rows for owner, rows in owned.items() if owner in ids)) for name, owned in tables)
    return [Held(table=f"embeddings/{name}", rows=rows) for name, rows in counted if rows]


def exports_of(lake: Lake, ids: frozenset[str]) -> list[Location]:
    """The exports below the lake that hold any of these ingests, finished or not.

    One that died before its manifest, and does not say what it was to hold, is taken for one of them.
    """
    found = []
    for folder in lake.root.join("exports").list():
        for name in ("manifest.json", PLANNED):
            try:
                held: dict[str, Any] = json.loads(folder.join(name).read_bytes())
            except FileNotFoundError:
                continue
            if ids.intersection(held["ingest_ids"]):
                found.append(folder)
            break
        else:
            if any(folder.entries()):  # some stores go on listing a folder whose last file is gone
                found.append(folder)
    return found


# -- files that still hold what was deleted ------------------------------------------------------------------------


def clean(lake: Lake, ids: frozenset[str], slides: frozenset[str]) -> int:
    """Remove the files in which deleted rows still lie; returns the bytes of pairs freed.

    Beside live writers, files that no table names may be theirs: such a file goes only if it is older than they are, or
    is read and holds one of these ingests, or one of these slides and is of no live writer.
    """
    started_s = lake.root.join("leases").clock_s()
    live = [lease for lease in read_leases(lake.root) if lease.is_live()]
    cutoff_s = min(lease.started_s for lease in live) - CLOCK_SLACK_S if live else started_s
    freed = lake.pairs.clean(cutoff_s)
    if live:
        freed += _drop_unnamed_pairs(lake, ids, slides, {lease.lease_id for lease in live})
    for name in ("slides", "rejections"):
        lake.catalog.clean(name, cutoff_s)
        if live:
            _drop_unnamed_rows(lake, name, ids)
    abort_uploads(lake.root, cutoff_s)
    drop_old_versions(lake.root)
    return freed


def _drop_unnamed_pairs(lake: Lake, ids: frozenset[str], slides: frozenset[str], live: Collection[str]) -> int:
    """Remove the files of pairs that no commit names and whose first row says whose they are."""
    from lance.file import LanceFileReader

    named = {file.path for part in lake.pairs.open().get_fragments() for file in part.data_files()}
    freed = 0
    for entry in lake.pairs.location.join("data").entries():
        if entry.location.name in named:
            continue
        try:
            reader = LanceFileReader(entry.location.uri, entry.location.lance_options(), ["ingest_id", "slide_id"])
            first = reader.read_range(0, 1).to_table().to_pylist()
        except OSError:
            continue  # not written to its end: a live writer's, or vacuum's
        mine = [row for row in first if row["slide_id"] in slides and row["ingest_id"] not in live]
        if mine or any(row["ingest_id"] in ids for row in first):
            entry.location.delete()
            freed += entry.size_bytes
    return freed


def _drop_unnamed_rows(lake: Lake, name: str, ids: frozenset[str]) -> None:
    """Remove the files of a table that its newest version does not name and that hold rows of these ingests: what a
    merge wrote that lost its race. One that is under way was based on a version before our deletion, and will lose."""
    table = lake.catalog.table(name)
    named = {uri.rsplit("/", 1)[-1] for uri in table.file_uris()}
    for entry in lake.catalog.root.join(name).entries(recursive=False):
        if entry.location.suffix != ".parquet" or entry.location.name in named:
            continue
        filesystem, path = entry.location.filesystem()
        try:
            owners = pq.read_table(path, columns=["ingest_id"], filesystem=filesystem)["ingest_id"].to_pylist()
        except (OSError, pa.ArrowInvalid):
            continue  # gone, or not written to its end
        if ids.intersection(owners):
            entry.location.delete()
