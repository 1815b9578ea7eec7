"""Forgetting is real: no byte below the root names the slide or the patient, or holds a pixel of theirs."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pyarrow.parquet as pq
import pytest

from histolake.platform.cache import cache_folder
from histolake.platform.errors import SlideNotFoundError
from histolake.platform.export import ExportSpec, export
from histolake.platform.lake import Lake
from histolake.platform.lake.audit import check
from histolake.platform.lake.forgetting import forget
from histolake.platform.storage import Location


def holders(root: Path, needles: list[bytes]) -> list[str]:
    """Files below a folder that hold one of some byte strings; Parquet files are decompressed first."""
    found = []
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        data = path.read_bytes()
        if path.suffix == ".parquet":
            data += repr(pq.read_table(path).to_pylist()).encode()
        found += [f"{path.relative_to(root)}: {needle!r}" for needle in needles if needle in data]
    return found


def place(where: Location, text: str) -> None:
    where.write_bytes(text.encode())


def test_nothing_of_a_patient_is_left(lake: Lake, writer: ModuleType) -> None:
    writer.ingest(lake, "c/mine-1", "one", 12, patient="Jane")
    writer.ingest(lake, "c/mine-1", "two", 14, patient="Jane")  # the first attempt is a retired version
    writer.ingest(lake, "c/mine-2", "one", 6, patient="Jane")
    writer.ingest(lake, "c/other", "one", 10, patient="John")
    version = lake.version
    for name, slides in (("all", None), ("others", ("c/other",))):
        export(lake.at(), ExportSpec(name=name, slide_ids=slides), lake.root.join("exports", name))

    root = Path(lake.uri)
    of = {row["ingest_id"]: row["slide_id"] for row in lake.catalog.slides(["ingest_id", "slide_id"]).to_pylist()}
    for ingest_id, slide_id in of.items():  # the pictures of all attempts, and one whose attempt nothing names
        place(lake.images.picture(ingest_id), f"overview of {slide_id}")
        place(lake.images.pyramid(ingest_id), f"pyramid of {slide_id}")
    place(lake.images.pyramid("0" * 32), "pyramid of a dead attempt at c/mine-1")
    place(Location(f"{lake.images.picture('1' * 32).uri}.part"), "half an overview of c/mine-1")
    rows = [row for batch in lake.at().pairs(["slide_id", "pair_id", "spot_image"]) for row in batch.to_pylist()]
    mine = [row for row in rows if row["slide_id"] != "c/other"]
    needles = [b"mine-1", b"mine-2", b"Jane", b"dead attempt", b"half an overview"]
    needles += [row["pair_id"] for row in mine] + [row["spot_image"][100:140] for row in mine]
    held = holders(root, needles)
    assert {needle for needle in needles if any(repr(needle) in line for line in held)} == set(needles)

    receipt = forget(lake, patient=("study", "Jane"), models=["models:/omiclip/1"])
    assert receipt.slides == ["c/mine-1", "c/mine-2"] and receipt.pairs == 12 + 14 + 6
    assert receipt.rejections == 6 and receipt.exports == ["all"] and receipt.models == ["models:/omiclip/1"]
    assert receipt.images == 2 * 3 + 2
    assert holders(root, needles) == []
    kept = [ingest_id for ingest_id, slide_id in of.items() if slide_id == "c/other"]
    assert sorted(lake.images.files()) == kept
    assert lake.images.picture(kept[0]).read_bytes() == b"overview of c/other"

    assert lake.at().slides()["slide_id"].to_pylist() == ["c/other"]
    for kept in (version, lake.version):  # version v reads as v without them
        assert sum(batch.num_rows for batch in lake.at(kept).pairs(["spot_image"])) == 10
    assert lake.at(1).slides().num_rows == 0
    assert (root / "exports" / "others" / "manifest.json").exists()
    assert check(lake) == []
    with pytest.raises(SlideNotFoundError, match="no patient study/Jane"):
        forget(lake, patient=("study", "Jane"))


def test_forgetting_one_slide_and_ingesting_it_again(lake: Lake, writer: ModuleType) -> None:
    writer.ingest(lake, "c/a", "one", 8)
    writer.ingest(lake, "c/b", "one", 9)
    forget(lake, slide_id="c/a")
    assert lake.at().slides()["slide_id"].to_pylist() == ["c/b"]
    writer.ingest(lake, "c/a", "one", 8)
    assert lake.at().slides()["n_pairs"].to_pylist() == [8, 9]
    assert check(lake) == []


def test_forgetting_takes_a_dead_attempt_of_the_slide_too(lake: Lake, writer: ModuleType) -> None:
    writer.ingest(lake, "c/a", "one", 8)
    attempt = lake.begin("c/a", source_digest="two", settings_digest="plain", source="x")
    attempt.pairs.write(writer.rows("c/a", "two", 5))
    lake.keeper.release(attempt.ingest_id)  # as if its process had died and its lease were gone
    forget(lake, slide_id="c/a")
    assert holders(Path(lake.uri), [b"c/a-spot", b"c/a"]) == []


def test_the_copy_of_an_embedded_image_goes_too(
    lake: Lake, writer: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    mine, source = cache_folder("embedded") / "mine.tif", tmp_path / "source.tif"
    for number, image in enumerate((mine, source)):
        image.write_bytes(bytes(100))
        writer.ingest(lake, f"c/s{number}", "one", 4, image=str(image))
        forget(lake, slide_id=f"c/s{number}")
    assert not mine.exists()
    assert source.exists(), "what the curator keeps is not ours to remove"
