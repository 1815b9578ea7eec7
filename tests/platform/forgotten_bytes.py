"""Everything that a lake can hold of a slide, and a search for what is left: raw bytes, and what they decode to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from histolake.platform.export import ExportSpec, export
from histolake.platform.lake import Lake
from histolake.platform.lake.correct import corrections
from histolake.platform.lake.embeddings import About
from histolake.platform.lake.embeddings.index import IndexPlan, keep_up
from histolake.platform.lake.revert import plan_revert, revert
from histolake.platform.lake.versions import set_tag
from histolake.platform.schemas import LOOK_ALIKE
from histolake.platform.storage import PART_PREFIX, Location

WIDTH = 8
ABOUT = About(model="m", version="1", digest="d" * 64, width=WIDTH, image_column="spot_image", image_um=55.0)
MINE = ("c/mine-1", "c/mine-2")


def fill(lake: Lake, writer: ModuleType, kill_writer: Callable[..., object]) -> None:
    """Two slides of Jane (one ingested twice, then corrected) and one of John; look-alikes, a refusal for being one,
    tags, a revert, a compaction, checkpoints, exports, images, embeddings with an index, dead attempts at every stage,
    and what a commit that lost its race left behind."""
    writer.ingest(lake, "c/mine-1", "one", 12, patient="Jane")
    writer.ingest(lake, "c/other", "one", 10, patient="John")
    writer.ingest(lake, "c/mine-1", "two", 14, patient="Jane")
    writer.ingest(lake, "c/mine-2", "one", 6, patient="Jane")
    _look_alikes(lake, writer)
    set_tag(lake, "paper", 3, note="all but those of Jane")
    set_tag(lake, "draft", 2, note="John and others")
    lake.resolve_genes(["MINEGENE"], allocate=True)
    lake.correct(corrections(lake.at(), {"c/mine-1": {"patient": "Jill", "disease": "c/mine-1 is rare"}}))
    lost = lake.catalog.table("slides")
    revert(lake, plan_revert(lake, 2, slide_ids=["c/mine-1"]))
    _lose(lost)
    _export(lake)
    _pictures(lake)
    _embed(lake)
    _dead(lake, writer, kill_writer)
    for name in ("slides", "rejections"):
        lake.catalog.table(name).optimize.compact()
        lake.catalog.table(name).create_checkpoint()


def needles(lake: Lake) -> list[bytes]:
    """What must not be left: names, barcodes, the pairs' ids, pixels, vectors."""
    found = [b"mine-1", b"mine-2", b"Jane", b"Jill", b"dead attempt", b"half a picture", b"half an export"]
    for version in range(1, lake.version + 1):
        for batch in lake.at(version).pairs(["slide_id", "barcode", "pair_id", "spot_image"]):
            for row in batch.to_pylist():
                if row["slide_id"] in MINE:
                    found += [row["barcode"].encode(), row["pair_id"], row["spot_image"][100:140]]
    table = lake.embeddings.open("m-v1").dataset().to_table(columns=["slide_id", "vector"])
    mine = [vector for owner, vector in zip(*table.to_pydict().values(), strict=True) if owner in MINE]
    found += [
        np.asarray(vector, table.schema.field("vector").type.value_type.to_pandas_dtype()).tobytes() for vector in mine
    ]
    return list(dict.fromkeys(found))


def holders(root: Path, wanted: Iterable[bytes]) -> dict[bytes, list[str]]:
    """Byte string -> the files below a folder that hold it, or whose rows do; names of files count too."""
    held: dict[bytes, list[str]] = {}
    wanted = list(wanted)
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        data = str(path.relative_to(root)).encode() + b"\0" + path.read_bytes() + b"\0" + b"\0".join(_rows(path))
        for needle in wanted:
            if needle in data:
                held.setdefault(needle, []).append(str(path.relative_to(root)))
    return held


def _rows(path: Path) -> Iterator[bytes]:
    """The values of a Parquet or a Lance file, decompressed."""
    if path.suffix == ".parquet":
        yield from _flat(pq.read_table(path).to_pylist())
    elif path.suffix == ".lance":
        from lance.file import LanceFileReader

        yield from _flat(LanceFileReader(str(path)).read_all().to_table().to_pylist())


def _flat(value: Any) -> Iterator[bytes]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for member in value:
            yield from _flat(member)
    elif isinstance(value, bytes):
        yield value
    else:
        yield str(value).encode()


def _look_alikes(lake: Lake, writer: ModuleType) -> None:
    attempt = lake.begin("c/alike", source_digest="one", settings_digest="plain", source="x")
    record = {"cohort": "c", "section": "alike", "n_spots": 4, "look_alikes": ["c/mine-1"], "flags": [LOOK_ALIKE]}
    none = pa.table({"rule": pa.array([], "string")})
    attempt.stage(record, [attempt.pairs.write(writer.rows("c/alike", "one", 4))], none)
    lake.publish([attempt])
    attempt = lake.begin("c/twin", source_digest="one", settings_digest="plain", source="x")
    reason = pa.table({"rule": ["duplicate"], "reason": ["It looks like c/mine-1."]})
    attempt.refuse({"cohort": "c", "n_spots": 4, "look_alikes": ["c/mine-1"]}, reason)
    lake.publish([attempt])


def _lose(behind: Any) -> None:
    """A merge on a version that is no longer the newest: its file stays, no commit names it."""
    from deltalake import CommitProperties
    from deltalake.exceptions import DeltaError

    rows = pa.Table.from_arrays(
        behind.to_pyarrow_table(columns=["ingest_id", "patient"]).columns, ["ingest_id", "patient"]
    )
    merge = behind.merge(
        rows.slice(0, 1),
        "old.ingest_id = new.ingest_id",
        source_alias="new",
        target_alias="old",
        commit_properties=CommitProperties(max_commit_retries=0),
    )
    try:
        merge.when_matched_update({"patient": "new.patient"}).execute()
    except DeltaError:
        return
    raise AssertionError("the merge must lose")


def _export(lake: Lake) -> None:
    exports = lake.root.join("exports")
    for name, slides in (("all", None), ("others", ("c/other",))):
        export(lake.at(), ExportSpec(name=name, slide_ids=slides), exports.join(name))
    exports.join("half", "half-000000.tar").write_bytes(b"half an export of c/mine-1")
    lake.root.join("exports", "half", "planned.json").write_bytes(
        lake.root.join("exports/all/manifest.json").read_bytes()
    )


def _pictures(lake: Lake) -> None:
    for row in lake.catalog.slides(["ingest_id", "slide_id"]).to_pylist():
        lake.images.picture(row["ingest_id"]).write_bytes(f"overview of {row['slide_id']}".encode())
        lake.images.pyramid(row["ingest_id"]).write_bytes(f"pyramid of {row['slide_id']}".encode())
    lake.images.pyramid("0" * 32).write_bytes(b"pyramid of a dead attempt at c/mine-1")
    Location(f"{lake.images.picture('1' * 32).uri}.part", lake.root.store).write_bytes(b"half a picture of c/mine-1")


def _embed(lake: Lake) -> None:
    table = lake.embeddings.create("m-v1", ABOUT)
    for row in lake.at().slides().to_pylist():
        ids = [r for batch in lake.at().pairs(["pair_id"], [row["slide_id"]]) for r in batch["pair_id"].to_pylist()]
        random = np.random.default_rng(len(ids))
        vectors = random.normal(size=(2, len(ids), WIDTH)).astype(np.float32)
        known = np.ones(len(ids), bool)
        written = table.writer(row["ingest_id"], row["slide_id"]).write(ids, vectors[0], known, vectors[1], known)
        table.append([written])
    for side in ("vector", "sentence_vector"):
        keep_up(table.dataset, side, IndexPlan(kind="IVF_FLAT", cells=2, sample_rate=8, sub_vectors=None))


def _dead(lake: Lake, writer: ModuleType, kill_writer: Callable[..., object]) -> None:
    """Attempts at c/mine-1 that died with a plan, with rows in the tables, and sealed; one that wrote a file and lost
    its lease."""
    for digest, step in (
        ("three", "attempt:Attempt._plan"),
        ("four", "attempt:Attempt._write_rejections"),
        ("five", "leases:LeaseKeeper.seal"),
    ):
        kill_writer(lake.uri, "c/mine-1", digest, 5, f"histolake.platform.lake.{step}")
    half = lake.root.join("leases", f"{PART_PREFIX}0123")  # of a process that died while it wrote a lease
    half.write_bytes(b'{"slide_id": "c/mine-1", "pla')
    attempt = lake.begin("c/mine-1", source_digest="six", settings_digest="plain", source="x")
    attempt.pairs.write(writer.rows("c/mine-1", "six", 5))
    lake.keeper.release(attempt.ingest_id)
