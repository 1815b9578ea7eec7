"""Images of the lake belong to the attempt that wrote them, and appear whole or not at all."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import ModuleType

import pytest

from histolake.platform.errors import StoreError
from histolake.platform.lake import Lake
from histolake.platform.lake.vacuum import vacuum


def say(text: str, path: Path) -> None:
    path.write_text(text)


def write_both(lake: Lake, ingest_id: str) -> None:
    lake.images.write(lake.images.picture(ingest_id), partial(say, "overview"))
    lake.images.write(lake.images.pyramid(ingest_id), partial(say, "pyramid"))


def test_vacuum_takes_what_no_version_names_and_no_lease_holds(lake: Lake, writer: ModuleType) -> None:
    writer.ingest(lake, "c/a", "one", 8)
    writer.ingest(lake, "c/a", "two", 8)  # the first is retired, and version 1 still shows it
    named = set(lake.catalog.slides(["ingest_id"])["ingest_id"].to_pylist())
    assert len(named) == 2
    running = lake.begin("c/b", source_digest="1", settings_digest="s", source="x")
    gone = lake.begin("c/c", source_digest="1", settings_digest="s", source="x")
    for ingest_id in [*named, running.ingest_id, gone.ingest_id]:
        write_both(lake, ingest_id)
    lake.root.join("images", f"{gone.ingest_id}.tif.part").write_bytes(b"half a pyramid")
    gone.abandon()

    removed = vacuum(lake)
    assert removed.images == 3
    assert removed.bytes >= len("overviewpyramidhalf a pyramid")
    assert set(lake.images.files()) == named | {running.ingest_id}
    assert all(len(files) == 2 for files in lake.images.files().values())
    running.abandon()
    assert vacuum(lake).images == 2
    assert set(lake.images.files()) == named


def test_an_image_that_fails_half_way_is_not_there(lake: Lake) -> None:
    def fail(path: Path) -> None:
        path.write_text("half")
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        lake.images.write(lake.images.picture("a"), fail)
    assert lake.images.files() == {}


def test_images_in_a_store(bucket: str, tmp_path: Path) -> None:
    lake = Lake.open(f"{bucket}/lake", create=True)
    write_both(lake, "a")
    lake.images.write(lake.images.pyramid("a"), partial(say, "another pyramid"))
    lake.images.write(lake.images.picture("b"), partial(say, "overview of b"))
    assert {owner: len(files) for owner, files in lake.images.files().items()} == {"a": 2, "b": 1}
    with lake.images.pyramid("a").borrowed() as path:
        assert path.read_text() == "another pyramid"
    assert not path.exists()
    assert vacuum(lake).images == 3
    assert lake.images.files() == {}


def test_a_place_that_takes_nothing_is_not_the_sections_fault(lake: Lake) -> None:
    (Path(lake.uri) / "images").write_text("in the way")
    with pytest.raises(StoreError, match="could not be written"):
        lake.images.write(lake.images.picture("a"), partial(say, "overview"))
