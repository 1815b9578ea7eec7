"""The files of a lake against what names them: of tables, images, exports and leases."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from histolake.platform.lake.audit.findings import AGAIN, REPORT, VACUUM, Finding, Tell
from histolake.platform.lake.leases import SILENT_S, Lease, Seal
from histolake.platform.lake.vacuum import SEAL_KEPT_S
from histolake.platform.storage import PART_PREFIX, Location

if TYPE_CHECKING:
    from histolake.platform.lake.lake import Lake

__all__ = [
    *("amiss", "catalog_files", "data_sizes", "exports"),
    *("leases_left", "overviews", "twice_published", "without_nulls"),
]

BLOCK_BYTES = 4 << 20
TAR_BLOCK = 512
LOOKS = 3  # at a table of the catalogue that seems damaged
EXPORT_AGAIN = "remove the folder and `histolake export` it again"


def catalog_files(lake: Lake) -> list[Finding]:
    """Files of the catalogue's tables that are gone, or not of the size that the log says."""
    found: list[Finding] = []
    for name in ("slides", "rejections", "genes"):
        damage: list[str] = []
        for _ in range(LOOKS):
            damage = _table_damage(lake.catalog.root.join(name), lake.catalog.table(name))
            if not damage:
                break
        fix = "restore it from a backup: the catalogue cannot be made anew"
        found += [
            Finding(severity="error", slide_id=None, ingest_id="", finding=f"catalog/{name}: {text}", fix=fix)
            for text in damage
        ]
    return found


def _table_damage(place: Location, table: Any) -> list[str]:
    """What is wrong with the files of a Delta table's version. Another writer may compact and clean them away."""
    added = pa.table(table.get_add_actions(flatten=True))
    sizes = {entry.location.name: entry.size_bytes for entry in place.entries(recursive=False)}
    told = []
    for path, size in zip(added["path"].to_pylist(), added["size_bytes"].to_pylist(), strict=True):
        problem = _amiss(sizes.get(path.rsplit("/", 1)[-1]), size)
        if problem is not None:
            told.append(f"the file {path} {problem}")
    return told


def data_sizes(table: Location) -> dict[str, int]:
    """The data files of a Lance table, by name, with their bytes."""
    return {entry.location.name: entry.size_bytes for entry in table.join("data").entries()}


def _amiss(found: int | None, wanted: int | None) -> str | None:
    """What is wrong with a file's size; None where nothing is."""
    if found is None:
        return "is gone"
    if wanted is not None and found != wanted:
        return f"has {found} bytes, not {wanted}"
    return None


def amiss(part: Any, sizes: dict[str, int]) -> list[str]:
    """What is wrong with a fragment's data files."""
    told = []
    for file in part.data_files():
        problem = _amiss(sizes.get(file.path), file.file_size_bytes)
        if problem is not None:
            told.append(f"data file {file.path} of fragment {part.fragment_id} {problem}")
    return told


def without_nulls(table: Location, part: Any, fields: dict[str, int]) -> set[str]:
    """The columns, of those given with their field ids, that a fragment's files say to hold no null.

    The pages of a file say whether any value is missing, so that images need not be read for it. The words are those
    of Lance's own description; where they are others, the column is not among what is returned, and is read.
    """
    from lance.file import LanceFileReader

    full = set()
    for file in part.data_files():
        place = table.join("data", file.path)
        columns = LanceFileReader(place.uri, storage_options=place.lance_options()).metadata().columns
        column_of = dict(zip(file.fields, file.column_indices, strict=True))
        for name, field_id in fields.items():
            if field_id in column_of and all(
                "RepdefAllValidItem" in page.encoding and "Nullable" not in page.encoding
                for page in columns[column_of[field_id]].pages
            ):
                full.add(name)
    return full


def exports(lake: Lake, named: set[str], leases: list[Lease], tell: Tell) -> Iterator[Finding]:
    """Exports below the lake: every shard's bytes, checksum and rows against the manifest."""

    def finding(severity: str, text: str, fix: str = EXPORT_AGAIN) -> Finding:
        return Finding(severity=severity, slide_id=None, ingest_id="", finding=text, fix=fix)

    under_way = {lease.purpose for lease in leases if lease.is_live()}
    folders = lake.root.join("exports").list()
    for number, folder in enumerate(folders):
        tell("exports", number + 1, len(folders))
        name = folder.name
        try:
            manifest = json.loads(folder.join("manifest.json").read_bytes())
            shards, promised = manifest["shards"], manifest["pairs"]
        except FileNotFoundError:
            # Some stores go on listing a folder whose last file is gone.
            if f"export {name}" not in under_way and any(folder.entries()):
                yield finding("waste", f"export {name} did not finish: it has no manifest")
            continue
        except (ValueError, KeyError, TypeError):
            yield finding("error", f"the manifest of export {name} cannot be read")
            continue
        if promised != sum(shard["rows"] for shard in shards):
            yield finding("error", f"export {name} has {promised} pairs in all, its shards another number")
        strangers = set(manifest["ingest_ids"]) - named
        if strangers:
            yield finding("error", f"export {name} holds {len(strangers)} ingests that the catalogue does not name")
        sizes = {entry.location.name: entry.size_bytes for entry in folder.entries()}
        for shard in shards:
            problem = _amiss(sizes.pop(shard["name"], None), shard["bytes"]) or _shard(folder, shard)
            if problem is not None:
                yield finding("error", f"shard {shard['name']} of export {name} {problem}")
        for stray in sorted(set(sizes) - {"manifest.json"}):
            yield finding("waste", f"{stray} is no part of export {name}", "remove it")


def _shard(folder: Location, shard: dict[str, Any]) -> str | None:
    filesystem, path = folder.join(shard["name"]).filesystem()
    digest, rows = hashlib.sha256(), 0
    with filesystem.open_input_stream(path, compression=None) as stream:
        while block := stream.read(BLOCK_BYTES):
            digest.update(block)
            rows += _samples(block)
    if digest.hexdigest() != shard["sha256"]:
        return "has another checksum than its manifest says"
    return None if rows == shard["rows"] else f"has {rows} rows, not {shard['rows']}"


def _samples(block: bytes) -> int:
    """How many samples begin in a run of whole tar blocks: each has one file `<pair_id>.json`."""
    blocks = np.frombuffer(block[: len(block) // TAR_BLOCK * TAR_BLOCK], dtype=np.uint8).reshape(-1, TAR_BLOCK)
    headers = blocks[(blocks[:, 257:262] == np.frombuffer(b"ustar", dtype=np.uint8)).all(axis=1)]
    names = np.ascontiguousarray(headers[:, :100]).view("S100").ravel()
    return int(np.char.endswith(names, b".json").sum())


def leases_left(lake: Lake, leases: list[Lease], named: set[str]) -> Iterator[Finding]:
    """Leases of the dead, and seals and half-written files beside them that nobody comes back for."""
    for lease in leases:
        if lease.is_live():
            continue
        left = lease.kind == "write" and lease.lease_id not in named
        text = f"a {lease.kind} lease of a process that is gone ({lease.purpose})"
        fix = VACUUM
        if left and lease.plan is not None:
            text += "; its attempt may be complete"
            fix = f"run the same ingest again, which publishes what is complete; {VACUUM}"
        slide_id = lease.slide_id
        yield Finding(severity="waste", slide_id=slide_id, ingest_id=lease.lease_id, finding=text, fix=fix)
    folder = lake.root.join("leases")
    entries = list(folder.entries(recursive=False))
    if not entries:
        return
    now_s, ids = folder.clock_s(), {lease.lease_id for lease in leases}
    for entry in entries:
        name, age_s = entry.location.name, now_s - entry.modified_s
        owner = name.removesuffix(".seal")
        if name.startswith(PART_PREFIX) and age_s > SILENT_S:
            text = f"a lease half written ({name})"
            yield Finding(severity="waste", slide_id=None, ingest_id="", finding=text)
        elif name.endswith(".seal") and owner not in ids:
            seal = Seal.read(entry.location)
            over = seal is not None and seal.by != "vacuum" and seal.is_here and not seal.is_running
            if over or age_s > SEAL_KEPT_S:
                yield Finding(severity="waste", slide_id=None, ingest_id=owner, finding="a seal without a lease")


def overviews(lake: Lake, rows: list[dict[str, Any]], seen: dict[str, list[str]]) -> Iterator[Finding]:
    """Sections whose image was opened, and whose overview is gone. `seen` are the files of `images/`, by attempt."""
    for row in rows:
        place = lake.images.picture(row["ingest_id"])
        if row["image_hash"] is None or place.name in seen.get(row["ingest_id"], ()) or place.exists():
            continue
        text = "the overview of its image is gone from images/"
        yield Finding(severity="error", slide_id=row["slide_id"], ingest_id=row["ingest_id"], finding=text, fix=AGAIN)


def twice_published(rows: list[dict[str, Any]]) -> Iterator[Finding]:
    """Slides with two published rows in one version. `rows` are ordered by slide and version."""
    last: dict[str, dict[str, Any]] = {}
    for row in rows:
        before = last.get(row["slide_id"])
        if before is not None and (before["retired_in"] is None or before["retired_in"] > row["published_in"]):
            text = f"two published rows in version {row['published_in']}: of {before['published_in']} and of it"
            yield Finding(
                severity="error", slide_id=row["slide_id"], ingest_id=row["ingest_id"], finding=text, fix=REPORT
            )
        last[row["slide_id"]] = row
