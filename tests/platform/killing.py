"""Writers that are killed, and what must be so afterwards: shared by the crash tests and the long loops.

Writers are processes of their own. They are forked from a server that has imported everything and opened nothing, so
that one costs a third of a second; Lance and Delta start their threads when they are first used, in the writer.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
from collections.abc import Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from tests.platform import lake_writer

from histolake.platform.lake import Lake
from histolake.platform.lake.leases import read_leases
from histolake.platform.schemas import PAIRS

__all__ = ["POINTS", "content", "contents", "leftovers", "published", "start", "undisturbed"]

LAKE = "histolake.platform.lake"
# Every commit point: what was done last when the writer dies.
POINTS = {
    "lease": f"{LAKE}.leases:LeaseKeeper.hold",
    "genes": f"{LAKE}.genes:GeneTable._allocate",
    "picture": f"{LAKE}.images:LakeImages.write",
    "fragment": f"{LAKE}.pairs:PairsWriter.write",  # the first of two
    "plan": f"{LAKE}.attempt:Attempt._plan",
    "rejections": f"{LAKE}.attempt:Attempt._write_rejections",
    "pairs": f"{LAKE}.pairs:PairsTable.append",
    "seal": f"{LAKE}.leases:LeaseKeeper.seal",
    "catalogue": f"{LAKE}.catalog:Catalog.commit",
    "release": f"{LAKE}.leases:LeaseKeeper.release",
}
CONTENT = [name for name in PAIRS.names if name != "ingest_id"]
SLIDES = ["slide_id", "status", "n_pairs", "n_rejections", "n_spots", "source_digest", "settings_digest"]

Task = tuple[str, str, int]  # slide_id, digest, number of pairs


def published(point: str) -> bool:
    """Whether a writer that died at a point had published."""
    return point in ("catalogue", "release")


def start(uri: str, tasks: Sequence[Task], point: str | None = None) -> ForkServerProcess:
    """A process that ingests some slides, one after the other, and dies at a point if one is named."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([lake_writer.__name__, "lance.fragment", "lance.commit", "boto3", "botocore.config"])
    store = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    process = context.Process(target=_write, args=(uri, list(tasks), point, store))
    process.start()
    return process


def _write(uri: str, tasks: Sequence[Task], point: str | None, store: dict[str, str]) -> None:
    os.environ.update(store)
    lake = Lake.open(uri, create=True)
    if point is not None:
        lake_writer.kill_after(POINTS[point])
    for slide_id, digest, count in tasks:
        lake_writer.ingest(lake, slide_id, digest, count, whole=True)


def undisturbed(folder: Path, history: Sequence[Task]) -> str:
    """The content of a lake into which these slides came one after the other, with nobody in the way."""
    lake = Lake.open(folder, create=True)
    for slide_id, digest, count in history:
        lake_writer.ingest(lake, slide_id, digest, count, whole=True)
    return content(lake)


def content(lake: Lake, version: int | None = None) -> str:
    """A hash of all that a version holds, but for what is random or a matter of order: ingest_ids, versions."""
    return hashlib.sha256(repr(sorted(contents(lake, version).items())).encode()).hexdigest()


def contents(lake: Lake, version: int | None = None) -> dict[str, str]:
    """The same for each of its slides: slide_id -> hash."""
    snapshot = lake.at(version)
    refused: dict[str, list[str]] = {}
    for row in snapshot.rejections().drop_columns(["ingest_id"]).to_pylist():
        refused.setdefault(row["slide_id"], []).append(repr(row))
    slides = snapshot.slides(include_refused=True)
    pictures = set(lake.images.files())
    told: dict[str, list[str]] = {}
    for row, ingest_id in zip(slides.select(SLIDES).to_pylist(), slides["ingest_id"].to_pylist(), strict=True):
        mine = told.setdefault(row["slide_id"], sorted(refused.get(row["slide_id"], [])))
        mine += [repr(row), f"picture: {ingest_id in pictures}"]
    digests = {slide_id: hashlib.sha256(repr(mine).encode()) for slide_id, mine in told.items()}
    for batch in snapshot.pairs(CONTENT):
        for row in batch.to_pylist():
            digests[row["slide_id"]].update(repr(row).encode())
    return {slide_id: digest.hexdigest() for slide_id, digest in digests.items()}


def leftovers(lake: Lake) -> list[str]:
    """What lies in a lake that nothing names: files, fragments, rejections, leases; and genes that have two numbers."""
    rows = lake.catalog.slides(["ingest_id", "fragments"]).to_pylist()
    named = {row["ingest_id"] for row in rows}
    fragments = {part["id"] for row in rows for part in row["fragments"] or []}
    dataset = lake.pairs.open()
    files = {file.path for part in dataset.get_fragments() for file in part.data_files()}
    found = [f"lease {lease.lease_id} of {lease.purpose}" for lease in read_leases(lake.root)]
    found += [f"fragment {part.fragment_id}" for part in dataset.get_fragments() if part.fragment_id not in fragments]
    found += [f"rejection of {i}" for i in set(lake.catalog.rejections()["ingest_id"].to_pylist()) - named]
    found += [f"image {file.location.name}" for i, own in lake.images.files().items() if i not in named for file in own]
    for name in ("slides", "rejections", "genes"):
        held = {uri.rsplit("/", 1)[-1] for uri in lake.catalog.table(name).file_uris()}
        there = lake.root.join("catalog", name).entries(recursive=False)
        found += [f"{name}: {e.location.name}" for e in there if e.location.name not in held]
    found += [
        f"data {e.location.name}" for e in lake.pairs.location.join("data").entries() if e.location.name not in files
    ]
    found += [str(entry.location) for entry in lake.root.entries() if ".writing-" in entry.location.uri]
    found += [f"seal {entry.location.name}" for entry in lake.root.join("leases").entries()]
    genes = lake.genes()
    for column in ("gene_id", "symbol"):
        mine = genes.filter([name.startswith("NEW-") for name in genes["symbol"].to_pylist()])[column].to_pylist()
        found += [f"gene with {column} {value} twice" for value in set(mine) if mine.count(value) > 1]
    return found
