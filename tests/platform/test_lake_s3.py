"""The same lake on a real object store."""

from __future__ import annotations

import gzip
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from histolake.platform.export import ExportSpec, export
from histolake.platform.lake import Lake
from histolake.platform.lake.audit import check
from histolake.platform.lake.correct import corrections
from histolake.platform.lake.forgetting import forget
from histolake.platform.lake.vacuum import vacuum
from histolake.platform.storage import Location


@pytest.fixture
def remote(bucket: str) -> Lake:
    """An empty lake in a bucket of its own."""
    return Lake.open(f"{bucket}/lake", create=True)


def test_the_road_on_s3(
    remote: Lake, writer: ModuleType, run_writer: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    assert writer.ingest(remote, "c/a", "one", 12) == 1
    racers = [run_writer(remote.uri, name, "one", 10) for name in ("c/b", "c/c")]
    for racer in racers:
        _, errors = racer.communicate(timeout=240)
        assert racer.returncode == 0, errors
    assert writer.ingest(remote, "c/a", "two", 14) == 4
    assert sum(batch.num_rows for batch in remote.at().pairs(["spot_image"])) == 34
    assert check(remote) == []

    assert remote.correct(corrections(remote.at(), {"c/b": {"patient": "P7"}})) == 5
    assert remote.at().slides(where="patient = 'P7' and n_pairs = 10")["slide_id"].to_pylist() == ["c/b"]
    assert remote.at(4).slides(where="patient = 'P7'").num_rows == 0

    attempt = remote.begin("c/d", source_digest="1", settings_digest="s", source="x")
    attempt.pairs.write(writer.rows("c/d", "1", 4))
    remote.keeper.release(attempt.ingest_id)
    time.sleep(1.1)  # the store's clock counts whole seconds
    assert vacuum(remote, clock_slack_s=0).bytes > 0
    manifest = export(remote.at(), ExportSpec(name="all"), remote.root.join("exports", "all"))
    assert manifest.pairs == 34 and remote.root.join("exports", "all", "manifest.json").exists()
    assert forget(remote, slide_id="c/a").exports == ["all"]
    assert remote.at().slides()["slide_id"].to_pylist() == ["c/b", "c/c"]
    assert sum(batch.num_rows for batch in remote.at(3).pairs(["spot_image"])) == 20
    assert check(remote) == []


def test_a_seal_has_one_winner(remote: Lake) -> None:
    place = remote.root.join("leases", "x.seal")
    assert place.create(b"first") and not place.create(b"second")
    assert place.read_bytes() == b"first"


def test_packed_files_stay_packed(bucket: str) -> None:
    packed = gzip.compress(b"one\ttwo\n", mtime=0)
    place = Location.parse(bucket).join("counts.tsv.gz")
    place.write_bytes(packed)
    assert (
        place.s3_client().get_object(Bucket=bucket.removeprefix("s3://"), Key="counts.tsv.gz")["Body"].read() == packed
    )
    assert place.read_bytes() == packed
    assert place.local_path().read_bytes() == packed


def test_a_file_that_is_replaced_is_read_whole(bucket: str) -> None:
    place = Location.parse(bucket).join("lease.json")
    place.write_bytes(b"[]")
    stop = threading.Event()

    def replace() -> None:
        size = 0
        while not stop.is_set():
            size = (size + 37) % 400
            place.write_bytes(b"[" + b" " * size + b"]")

    writer = threading.Thread(target=replace)
    writer.start()
    try:
        for _ in range(400):
            assert place.read_bytes().endswith(b"]")
    finally:
        stop.set()
        writer.join()
    place.delete()
    with pytest.raises(FileNotFoundError):
        place.read_bytes()


def test_transfers_in_parts_that_never_ended_go(remote: Lake) -> None:
    bucket, _, key = remote.root.join("images", "x.tif").uri.removeprefix("s3://").partition("/")
    client = remote.root.s3_client()

    def begin(key: str) -> None:
        upload = client.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"]
        client.upload_part(Bucket=bucket, Key=key, UploadId=upload, PartNumber=1, Body=b"half a pyramid")

    def open_ones() -> list[str]:
        return [upload["Key"] for upload in client.list_multipart_uploads(Bucket=bucket).get("Uploads", [])]

    begin(key)
    begin("elsewhere/y.tif")
    vacuum(remote)
    assert sorted(open_ones()) == sorted([key, "elsewhere/y.tif"]), "somebody may be at it"
    time.sleep(1.1)  # the store's clock counts whole seconds
    vacuum(remote, clock_slack_s=0)
    assert open_ones() == ["elsewhere/y.tif"]
