"""Forgetting is real: nothing below the root holds the slides, the patient, the pairs' ids or the pixels, whatever the
lake held of them; on disk and in an object store; beside a live ingest; and after a kill at any step."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import pytest
from tests.platform.forgotten_bytes import MINE, fill, holders, needles

from histolake.platform.errors import SlideNotFoundError
from histolake.platform.lake import Lake
from histolake.platform.lake.audit import check
from histolake.platform.lake.forgetting import finish, forget, plan_forget
from histolake.platform.lake.forgotten import forgotten_of
from histolake.platform.lake.vacuum import vacuum
from histolake.platform.lake.versions import tags

KEEPER = Path(__file__).parent / "lake_keeper.py"
NONE = pa.table({"rule": pa.array([], "string")})

# Right after each of these calls the process is killed; (method, how many calls of it).
KILLS = [
    ("catalog:Catalog.change_properties", 1),  # begun: the ids are written down
    ("catalog:Catalog.amend", 1),  # the look-alikes are mended
    ("catalog:Catalog.delete", 1),  # slides: no name leads there any more
    ("catalog:Catalog.delete", 2),  # rejections
    ("embeddings:EmbeddingTables.drop", 1),
    ("pairs:PairsTable.drop", 1),
    ("images:LakeImages.drop", 1),
    ("leases:Lease.remove", 1),
    ("pairs:PairsTable.clean", 1),
    ("catalog:Catalog.clean", 1),
    ("catalog:Catalog.change_properties", 2),  # done
]


@pytest.fixture(scope="module")
def kill_writer(run_writer: Callable[..., subprocess.Popen[str]]) -> Callable[..., None]:
    def kill(*words: object) -> None:
        process = run_writer(*words)
        _, errors = process.communicate(timeout=120)
        assert process.returncode == -signal.SIGKILL, errors

    return kill


@pytest.fixture(scope="module")
def filled(writer: ModuleType, kill_writer: Callable[..., None], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lake with everything in it, to be copied."""
    lake = Lake.open(tmp_path_factory.mktemp("filled") / "lake", create=True)
    fill(lake, writer, kill_writer)
    return Path(lake.uri)


@pytest.fixture
def copied(filled: Path, tmp_path: Path) -> Lake:
    """A copy of it."""
    return Lake.open(shutil.copytree(filled, tmp_path / "copied"))


def require_gone(lake: Lake) -> None:
    for slide_id in MINE:
        with pytest.raises(SlideNotFoundError):
            forget(lake, slide_id=slide_id)


def require_the_others(lake: Lake, before: dict[str, list[Any]]) -> None:
    """The other slides read as they did, and the lake is whole."""
    assert others(lake) == before
    assert check(lake) == []
    assert lake.genes()["symbol"].to_pylist()[-1] == "MINEGENE", "a gene's id stays: it says nothing of anybody"


def others(lake: Lake) -> dict[str, list[Any]]:
    """What the newest version holds of the slides that stay."""
    rows = [
        row
        for batch in lake.at().pairs(["slide_id", "barcode", "pair_id", "spot_image"])
        for row in batch.to_pylist()
        if row["slide_id"] not in MINE
    ]
    names = [row for row in lake.at().slides()["slide_id"].to_pylist() if row not in MINE]
    return {"pairs": rows, "slides": names, "genes": lake.resolve_genes(["MINEGENE"]).tolist()}


def test_no_byte_of_a_patient_is_left(copied: Lake) -> None:
    lake = copied
    root, wanted, before = Path(lake.uri), needles(lake), others(lake)
    held = holders(root, wanted)
    assert set(held) == set(wanted), "everything that is looked for is there"
    folders = {name.split("/")[0] for files in held.values() for name in files}
    assert folders == {"catalog", "embeddings", "exports", "images", "leases", "pairs.lance", "tags"}

    planned = plan_forget(lake, patient=("study", "Jane"))
    assert holders(root, wanted) == held, "a plan does nothing"
    receipt = forget(lake, patient=("study", "Jane"))
    assert holders(root, wanted) == {}
    require_the_others(lake, before)
    assert (receipt.slides, receipt.exports, receipt.notes) == (list(MINE), ["all", "half"], ["paper"])
    assert (receipt.pairs, receipt.embeddings, receipt.catalog_rows) == (12 + 14 + 6, 12 + 6, 5)
    assert receipt.tags == ["draft (2)", "paper (3)"] and receipt.look_alikes == ["c/alike", "c/twin"]
    assert receipt.slides == planned.slides and receipt.tables == planned.tables and planned.state == "planned"
    assert [(tag.name, tag.note) for tag in tags(lake)] == [("draft", "John and others"), ("paper", "")]
    rows = {row["slide_id"]: row for row in lake.at().slides(include_refused=True).to_pylist()}
    assert set(rows) == {"c/alike", "c/other"}, "who was refused for looking like one may come in now"
    assert rows["c/alike"]["look_alikes"] == [] == rows["c/alike"]["flags"]
    assert [entry.slides for entry in forgotten_of(lake.catalog.properties())] == [2]
    assert "1 slide of version 3 was forgotten on 20" in str(lake.at("paper").notice)
    assert "2 slides of version 4 were forgotten on 20" in str(lake.at(4).notice) and lake.at().notice is None
    require_gone(lake)


def test_a_live_ingest_of_another_slide_goes_on(copied: Lake, writer: ModuleType) -> None:
    lake = copied
    live = lake.begin("c/live", source_digest="one", settings_digest="plain", source="x")
    lake.keeper.update(live.ingest_id, started_s=1.0)  # before any file of the lake, so that none goes for its age
    fragments = [live.pairs.write(writer.rows("c/live", "one", 4))]
    fragments.append(live.pairs.write(writer.rows("c/live", "one", 3, first=4)))
    root, wanted = Path(lake.uri), needles(lake)
    assert set(holders(root, wanted)) == set(wanted)
    forget(lake, patient=("study", "Jane"))
    assert holders(root, wanted) == {}
    live.stage({"cohort": "c", "section": "live", "n_spots": 7}, fragments, NONE)
    lake.publish([live])
    assert sum(batch.num_rows for batch in lake.at().pairs(["spot_image"], ["c/live"])) == 7
    assert check(lake) == []


def test_no_object_of_a_store_holds_a_byte_of_a_patient(
    bucket: str, writer: ModuleType, kill_writer: Callable[..., None], tmp_path: Path
) -> None:
    """Beside the objects there are those that a bucket with versioning keeps, and uploads that were never completed."""
    lake = Lake.open(f"{bucket}/deep/lake", create=True)
    client, name = lake.root.s3_client(), bucket.removeprefix("s3://")
    client.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
    fill(lake, writer, kill_writer)
    for key in ("deep/lake/pairs.lance/data/half.lance", "elsewhere/half"):
        upload = client.create_multipart_upload(Bucket=name, Key=key)
        client.upload_part(Bucket=name, Key=key, UploadId=upload["UploadId"], PartNumber=1, Body=b"c/mine-1" * 100)
    wanted, before = needles(lake), others(lake)
    _fetch(client, name, tmp_path / "before")
    assert set(holders(tmp_path / "before", wanted)) == set(wanted)
    time.sleep(1.1)  # the store's clock counts whole seconds
    forget(lake, patient=("study", "Jane"))
    _fetch(client, name, tmp_path / "after")
    assert holders(tmp_path / "after", wanted) == {}
    uploads = client.list_multipart_uploads(Bucket=name).get("Uploads") or []
    assert [upload["Key"] for upload in uploads] == ["elsewhere/half"]
    require_the_others(lake, before)


def _fetch(client: Any, bucket: str, to: Path) -> None:
    """Every version of every object of a bucket, as files."""
    pages = client.get_paginator("list_object_versions").paginate(Bucket=bucket)
    for number, entry in enumerate(entry for page in pages for entry in page.get("Versions") or []):
        what = {"Bucket": bucket, "Key": entry["Key"], "VersionId": entry["VersionId"]}
        target = to / str(number) / entry["Key"]
        target.parent.mkdir(parents=True)
        target.write_bytes(client.get_object(**what)["Body"].read())


def test_a_kill_at_any_step_is_finished_by_the_next(copied: Lake, tmp_path: Path) -> None:
    lake = copied
    wanted, before = needles(lake), others(lake)

    def die(number: int) -> str:
        copy = tmp_path / f"copy-{number}"
        shutil.copytree(lake.uri, copy)
        method, calls = KILLS[number]
        words = [sys.executable, "-P", str(KEEPER), "forget", str(copy), "Jane", method, str(calls)]
        done = subprocess.run(words, capture_output=True, text=True, timeout=240)
        assert done.returncode == -signal.SIGKILL, (method, calls, done.stderr)
        return str(copy)

    with ThreadPoolExecutor(3) as pool:
        copies = list(pool.map(die, range(len(KILLS))))
    for (method, calls), uri in zip(KILLS, copies, strict=True):
        copy = Lake.open(uri)
        assert others(copy) == before, (method, calls)
        finish(copy)
        assert holders(Path(uri), wanted) == {}, (method, calls)
        (entry,) = forgotten_of(copy.catalog.properties())
        assert entry.slides == 2 and not entry.pending, "counted once"
        require_the_others(copy, before)
        assert vacuum(copy, clock_slack_s=0).fragments == 0
        require_gone(copy)
