"""Exports: WebDataset shards of a lake version, which other tools' data loaders read as they are.

Each sample is `<pair_id>.jpg` (a patch), `<pair_id>.txt` (the gene sentence) and `<pair_id>.json` (slide, barcode,
position, whether it is simulated). `manifest.json` beside the shards names the lake version, its slides, and each shard
with its hash.
An export is derived: it can be made again, and is removed whole when something in it is forgotten.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from histolake.platform.errors import ConflictError, UsageError
from histolake.platform.lake import Snapshot
from histolake.platform.lake.forgetting.removal import PLANNED
from histolake.platform.storage import Location

__all__ = ["ExportSpec", "Manifest", "export"]

COLUMNS = ["pair_id", "slide_id", "barcode", "x_um", "y_um"]
IMAGES = {"spot": ("spot_image", "sentence"), "niche": ("niche_image", "niche_sentence")}


@dataclass(frozen=True, kw_only=True)
class ExportSpec:
    """What an export holds; equal specs make equal shards."""

    name: str
    image: str = "spot"  # "spot" or "niche": the patch, and the sentence that goes with it
    slide_ids: tuple[str, ...] | None = None  # None takes all
    rows_per_shard: int = 1000


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The content of `manifest.json`."""

    format: str
    format_version: int
    name: str
    image: str
    lake: str
    lake_version: int
    simulated: bool
    rows_per_shard: int
    slide_ids: list[str]
    ingest_ids: list[str]
    pairs: int
    left_out: int  # pairs without a picture or without a sentence
    shards: list[dict[str, Any]]  # name, rows, bytes, sha256
    when: str
    reused: bool = False  # whether the export was there already


def export(snapshot: Snapshot, spec: ExportSpec, to: Location) -> Manifest:
    """Write an export of a snapshot to a folder; an equal one that is there already is kept.

    The manifest is written last: without one, a folder is an export that did not finish, and is replaced.
    Raises `UsageError` where another export of that name is there.
    """
    if spec.image not in IMAGES:
        raise UsageError(f"--image is {spec.image!r}; it is {' or '.join(IMAGES)}.")
    slides = snapshot.slides()
    if spec.slide_ids is not None:
        slides = slides.filter(pa.compute.is_in(slides["slide_id"], pa.array(spec.slide_ids)))
    planned = {
        "format": "histolake-export",
        "format_version": 1,
        "name": spec.name,
        "image": spec.image,
        "lake": snapshot.lake.uri,
        "simulated": any(slides["simulated"].to_pylist()),
        "rows_per_shard": spec.rows_per_shard,
        "slide_ids": slides["slide_id"].to_pylist(),
        "ingest_ids": slides["ingest_id"].to_pylist(),
    }
    place = to.join("manifest.json")
    if place.exists():
        found = json.loads(place.read_bytes())
        if all(found.get(key) == value for key, value in planned.items()):
            return Manifest(**{**found, "reused": True})
        raise UsageError(
            f"{to} holds another export (of lake version {found.get('lake_version')}); choose another name."
        )
    if _inside(to, snapshot.lake.root) and to.parent().uri != snapshot.lake.root.join("exports").uri:
        raise UsageError(f"{to} lies in the lake, where forgetting would not find it; leave --to out, or go elsewhere.")
    _clear(spec, to)
    to.join(PLANNED).write_bytes(json.dumps(planned).encode())  # whose shards these are, for who forgets meanwhile
    with snapshot.reading(f"export {spec.name}"):
        simulated = dict(zip(planned["slide_ids"], slides["simulated"].to_pylist(), strict=True))
        shards, pairs, left_out = _write_shards(snapshot, spec, simulated, to)
        manifest = Manifest(
            **planned,
            lake_version=snapshot.version,
            pairs=pairs,
            left_out=left_out,
            shards=shards,
            when=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        place.write_bytes(json.dumps({k: v for k, v in asdict(manifest).items() if k != "reused"}, indent=1).encode())
        to.join(PLANNED).delete()
        _require_kept(snapshot, manifest, to)
    return manifest


def _require_kept(snapshot: Snapshot, manifest: Manifest, to: Location) -> None:
    """Remove an export of slides that were forgotten while it was written: who forgot them may not have seen it."""
    known = set(snapshot.lake.catalog.slides(["ingest_id"])["ingest_id"].to_pylist())
    if not known.issuperset(manifest.ingest_ids):
        to.delete()
        raise ConflictError(f"Slides were forgotten while they were exported; {to} was removed, export again.")


def _inside(place: Location, root: Location) -> bool:
    return place.uri == root.uri or place.uri.startswith(root.uri.rstrip("/") + "/")


def _clear(spec: ExportSpec, to: Location) -> None:
    """Remove the shards of an export that did not finish; refuse a folder that holds anything else."""
    left = to.list()
    ours = re.compile(rf"{re.escape(spec.name)}-\d{{6}}\.tar|{re.escape(PLANNED)}")
    strange = [place.name for place in left if not ours.fullmatch(place.name)]
    if strange:
        raise UsageError(f"{to} holds other files, such as {strange[0]}; name an empty folder.")
    for place in left:
        place.delete()


def _write_shards(
    snapshot: Snapshot, spec: ExportSpec, simulated: Mapping[str, bool], to: Location
) -> tuple[list[dict[str, Any]], int, int]:
    shards: list[dict[str, Any]] = []
    pairs = left_out = 0
    for batch in _shard_batches(snapshot, spec, list(simulated)):
        samples = [sample for row in batch.to_pylist() if (sample := _sample(row, spec, simulated))]
        left_out += batch.num_rows - len(samples)
        if not samples:
            continue
        data = _tar(samples)
        name = f"{spec.name}-{len(shards):06d}.tar"
        to.join(name).write_bytes(data)
        digest = hashlib.sha256(data).hexdigest()
        shards.append({"name": name, "rows": len(samples), "bytes": len(data), "sha256": digest})
        pairs += len(samples)
    return shards, pairs, left_out


def _shard_batches(snapshot: Snapshot, spec: ExportSpec, slide_ids: Sequence[str]) -> Iterator[pa.Table]:
    """The pairs in the lake's order, in tables of `rows_per_shard`; memory holds one shard."""
    waiting: list[pa.RecordBatch] = []
    rows = 0
    columns = [*COLUMNS, *IMAGES[spec.image]]
    for batch in snapshot.pairs(columns, slide_ids, batch_rows=256):
        while batch.num_rows:
            taken = batch.slice(0, spec.rows_per_shard - rows)
            batch = batch.slice(taken.num_rows)
            waiting.append(taken)
            rows += taken.num_rows
            if rows == spec.rows_per_shard:
                yield pa.Table.from_batches(waiting)
                waiting, rows = [], 0
    if waiting:
        yield pa.Table.from_batches(waiting)


def _sample(row: dict[str, Any], spec: ExportSpec, simulated: Mapping[str, bool]) -> dict[str, Any] | None:
    image, sentence = (row[column] for column in IMAGES[spec.image])
    if not image or not sentence:
        return None
    about = {**{name: row[name] for name in COLUMNS[1:]}, "simulated": bool(simulated[row["slide_id"]])}
    return {"__key__": row["pair_id"].hex(), "jpg": image, "txt": sentence.encode(), "json": json.dumps(about).encode()}


def _tar(samples: list[dict[str, Any]]) -> bytes:
    import webdataset

    out = io.BytesIO()
    # Fixed times and owners: equal samples make equal shards.
    with webdataset.TarWriter(out, encoder=False, mtime=0.0, user="histolake", group="histolake") as tar:
        for sample in samples:
            tar.write(sample)
    return out.getvalue()
