"""The audit, on lakes that are broken by hand in every way that it knows."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import simplejpeg

from histolake.platform.export import ExportSpec, export
from histolake.platform.lake import Lake
from histolake.platform.lake.audit import check
from histolake.platform.lake.audit.files import without_nulls
from histolake.platform.lake.audit.findings import Finding
from histolake.platform.lake.vacuum import vacuum
from histolake.platform.schemas import PAIRS

Change = Callable[[dict[str, Any], int], None]


def jpeg(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    return bytes(simplejpeg.encode_jpeg(pixels))


def rows(slide_id: str, count: int, change: Change | None = None) -> pa.Table:
    """Pairs that are as they must be, but for what `change` does to the one of a number."""
    ids = [bytes([sum(slide_id.encode()) % 251, number]) * 8 for number in range(count)]
    made = []
    for number in range(count):
        row = {
            **dict.fromkeys(PAIRS.names),
            "pair_id": ids[number],
            "ingest_id": "",
            "slide_id": "",
            "barcode": f"{slide_id}-{number}",
            "spot_image": jpeg(number),
            "niche_image": jpeg(100 + number),
            "sentence": "ACTB",
            "gene_ids": [3, 7, 20 + number],
            "counts": [1.0, 2.0, 3.0],
            "n_genes": 3.0,
            "niche": [other for other in ids if other != ids[number]][:2],
        }
        if change is not None:
            change(row, number)
        made.append(row)
    return pa.Table.from_pylist(made, schema=PAIRS)


def ingest(lake: Lake, slide_id: str, change: Change | None = None, count: int = 12, **record: Any) -> str:
    """Publish a slide with an image, in two fragments; gives its ingest_id."""
    attempt = lake.begin(slide_id, source_digest=str(change), settings_digest="plain", source=slide_id)
    table = rows(slide_id, count, change)
    fragments = [attempt.pairs.write(table.slice(0, count // 2)), attempt.pairs.write(table.slice(count // 2))]
    refused = pa.Table.from_pylist([{"rule": "min_genes"}, {"rule": "min_genes"}])
    attempt.stage({"n_spots": count + 2, "image": "image.tif", **record}, fragments, refused)
    lake.publish([attempt])
    return attempt.ingest_id


def told(lake: Lake, *, deep: bool = False) -> list[str]:
    """What is found, as severity and sentence; every finding says what to do."""
    found = check(lake, deep=deep)
    assert all(finding.fix and finding.finding == finding.finding.strip() for finding in found)
    assert len(set(found)) == len(found)
    return [f"{finding.severity}: {finding.finding}" for finding in found]


def data_files(lake: Lake, ingest_id: str) -> list[Path]:
    dataset = lake.pairs.open()
    (row,) = [row for row in lake.catalog.slides().to_pylist() if row["ingest_id"] == ingest_id]
    parts = [dataset.get_fragment(part["id"]) for part in row["fragments"]]
    return [Path(lake.uri) / "pairs.lance" / "data" / part.data_files()[0].path for part in parts]


def test_a_whole_lake_is_told_so(lake: Lake) -> None:
    ingest(lake, "c/a")
    ingest(lake, "c/b", image=None, count=4)
    ingest(lake, "c/a", lambda row, number: row.update(x_um=1.0))
    assert told(lake) == [] and told(lake, deep=True) == []


def at_five(**columns: Any) -> Change:
    """Set columns of pair 5, the last of its fragment."""
    return lambda row, number: row.update(columns) if number == 5 else None


def at_three(**columns: Any) -> Change:
    """Set columns of pair 3, neither the first nor the last of its fragment."""
    return lambda row, number: row.update(columns) if number == 3 else None


SAMPLED = " (of the first and last of each fragment; --deep looks at all)"


@pytest.mark.parametrize(
    ("change", "quick", "deep"),
    [
        (at_three(spot_image=None), "1 pairs have no spot_image", None),
        (at_three(niche_image=None), "1 pairs have no niche_image", None),
        (lambda row, number: row.update(spot_image=None), "12 pairs have no spot_image", None),
        (at_five(spot_image=b"GIF89a"), f"the spot_image of 1 pairs is no JPEG{SAMPLED}", ...),
        (at_three(spot_image=b"GIF89a"), None, "the spot_image of 1 pairs is no JPEG"),
        (at_three(niche_image=jpeg(1)[:-2]), None, "the niche_image of 1 pairs is no JPEG"),
        (at_three(spot_image=jpeg(1)[:200] + b"\xff\xd9"), None, "the spot_image of 1 pairs cannot be decoded"),
        (at_five(n_genes=4.0), f"n_genes of 1 pairs is not the number of their genes{SAMPLED}", ...),
        (at_three(n_genes=4.0), None, "n_genes of 1 pairs is not the number of their genes"),
        (at_three(counts=[1.0]), None, "1 pairs have more or fewer counts than genes"),
        (at_three(gene_ids=[3, 7, 900_000]), None, "1 counts are of genes that the lake does not know"),
        (at_three(gene_ids=[-1, 7, 8]), None, "1 counts are of genes that the lake does not know"),
        (at_three(gene_ids=[7, 3, 8]), None, "1 genes are not in their order"),
        (at_three(niche=[bytes(16), b"x" * 16]), "niches name 2 pairs that the slide does not have", None),
    ],
)  # fmt: skip
def test_what_is_wrong_with_pairs(lake: Lake, change: Change, quick: str | None, deep: Any) -> None:
    """Found at once, or only when every pair is looked at (None: the same; ...: the same, said of all)."""
    ingest(lake, "c/whole")
    ingest(lake, "c/a", change)
    assert told(lake) == ([f"error: {quick}"] if quick else [])
    wanted = quick if deep is None else quick.removesuffix(SAMPLED) if deep is ... and quick else deep
    assert told(lake, deep=True) == [f"error: {wanted}"]
    assert {finding.slide_id for finding in check(lake, deep=True)} == {"c/a"}


def test_pairs_that_are_there_twice(lake: Lake) -> None:
    ingest(lake, "c/a", lambda row, number: row.update(pair_id=rows("c/a", 12)["pair_id"][max(number, 2)].as_py()))
    assert "error: 2 pairs are there twice" in told(lake)


def test_pairs_of_another_ingest_anywhere_in_a_fragment(lake: Lake) -> None:
    """A fragment whose first row is right and a later one is not: made with Lance itself, as no writer of ours can."""
    from lance.fragment import write_fragments

    from histolake.platform.lake import Fragment

    attempt = lake.begin("c/a", source_digest="1", settings_digest="s", source="x")
    table = rows("c/a", 6).set_column(1, PAIRS.field("ingest_id"), pa.array([attempt.ingest_id] * 5 + ["other"]))
    table = table.set_column(2, PAIRS.field("slide_id"), pa.array(["c/a"] * 3 + ["c/b"] * 3))
    (made,) = write_fragments(table, lake.pairs.location.uri, schema=PAIRS, mode="append")
    attempt.stage(
        {"n_spots": 6},
        [Fragment(metadata=json.dumps(made.to_json()), rows=6)],
        pa.table({"rule": pa.array([], "string")}),
    )
    lake.publish([attempt])
    part = attempt.row(1)["fragments"][0]["id"]
    assert told(lake) == [
        f"error: fragment {part} holds 1 pairs of another ingest",
        f"error: fragment {part} holds 3 pairs of another slide",
    ]


def test_fragments_that_are_gone_or_named_twice_and_counts_that_lie(lake: Lake) -> None:
    first, second = ingest(lake, "c/a"), ingest(lake, "c/b")
    held = {row["ingest_id"]: row for row in lake.catalog.slides().to_pylist()}
    gone = held[first]["fragments"][1]
    lake.pairs.drop({first: [gone["id"]]})
    changed = {"ingest_id": second, "published_in": 2, "n_pairs": 13, "n_rejections": 3}
    changed["fragments"] = [held[first]["fragments"][0], *held[second]["fragments"][1:]]
    fields = pa.schema([lake.catalog.slides().schema.field(name) for name in changed])
    lake.catalog.amend(pa.Table.from_pylist([changed], schema=fields))
    found = told(lake)
    assert f"error: fragment {gone['id']} with 6 pairs is gone" in found
    assert f"error: fragment {held[first]['fragments'][0]['id']} is also named by an ingest of c/a" in found
    assert "error: the catalogue counts 13 pairs, its fragments another number" in found
    assert "error: the catalogue counts 3 rejections, catalog/rejections holds 2" in found
    assert f"waste: fragment {held[second]['fragments'][0]['id']} belongs to no version" in found
    assert f"error: fragment {held[first]['fragments'][0]['id']} holds 6 pairs of another ingest" in found


def test_data_files_that_are_gone_cut_or_rewritten(lake: Lake) -> None:
    paths = {name: data_files(lake, ingest(lake, name))[0] for name in ("c/cut", "c/gone", "c/scratched", "c/whole")}
    size = paths["c/cut"].stat().st_size
    paths["c/cut"].write_bytes(paths["c/cut"].read_bytes()[: size // 2])
    paths["c/gone"].unlink()
    held = paths["c/scratched"].read_bytes()
    paths["c/scratched"].write_bytes(held[:-60] + bytes(60))  # the same size
    assert [re.sub(r"file \w+|fragment \d+|: \w.*read: .*", "", text) for text in told(lake)] == [
        f"error: data .lance of  has {size // 2} bytes, not {size}",
        "error: data .lance of  is gone",
        "error",
    ]
    assert {finding.slide_id for finding in check(lake)} == {"c/cut", "c/gone", "c/scratched"}


def test_files_of_the_catalogue_that_are_gone(lake: Lake) -> None:
    ingest(lake, "c/a")
    for name in ("rejections", "slides"):
        file = next((Path(lake.uri) / "catalog" / name).glob("*.parquet"))
        held = file.read_bytes()
        file.unlink()
        (found,) = check(lake)
        assert found.finding == f"catalog/{name}: the file {file.name} is gone"
        assert "restore it from a backup" in found.fix
        file.write_bytes(held)
    assert told(lake) == []


def test_a_slide_that_is_published_twice(lake: Lake) -> None:
    first = ingest(lake, "c/a")
    ingest(lake, "c/a", at_three(x_um=2.0))
    assert told(lake) == []
    fields = pa.schema([lake.catalog.slides().schema.field(n) for n in ("ingest_id", "published_in", "retired_in")])
    row = {"ingest_id": first, "published_in": 1, "retired_in": None}
    lake.catalog.amend(pa.Table.from_pylist([row], schema=fields))
    assert told(lake) == ["error: two published rows in version 2: of 1 and of it"]


@pytest.fixture
def exported(lake: Lake) -> Iterator[Path]:
    """The folder of an export below the lake, of two shards."""
    ingest(lake, "c/a")
    place = lake.root.join("exports", "all")
    export(lake.at(), ExportSpec(name="all", rows_per_shard=8), place)
    assert told(lake) == []
    yield Path(place.uri)


def test_a_byte_of_a_shard(lake: Lake, exported: Path) -> None:
    shard = exported / "all-000001.tar"
    held = bytearray(shard.read_bytes())
    held[700] ^= 1
    shard.write_bytes(held)
    assert told(lake) == ["error: shard all-000001.tar of export all has another checksum than its manifest says"]
    assert "histolake export" in check(lake)[0].fix


def test_shards_against_their_manifest(lake: Lake, exported: Path) -> None:
    (exported / "all-000000.tar").unlink()
    (exported / "note.txt").write_text("mine")
    manifest = json.loads((exported / "manifest.json").read_bytes())
    manifest["shards"][1]["rows"] += 1
    manifest["ingest_ids"] += ["of nobody"]
    (exported / "manifest.json").write_text(json.dumps(manifest))
    assert told(lake) == [
        "error: export all has 12 pairs in all, its shards another number",
        "error: export all holds 1 ingests that the catalogue does not name",
        "error: shard all-000000.tar of export all is gone",
        "error: shard all-000001.tar of export all has 4 rows, not 5",
        "waste: note.txt is no part of export all",
    ]
    (exported / "manifest.json").write_text("{")
    assert told(lake) == ["error: the manifest of export all cannot be read"]
    (exported / "manifest.json").unlink()
    assert told(lake) == ["waste: export all did not finish: it has no manifest"]


def test_images_leases_and_seals_of_nobody(
    lake: Lake, writer: ModuleType, run_writer: Callable[..., subprocess.Popen[str]]
) -> None:
    mine = ingest(lake, "c/a", image_hash="00ff")
    assert told(lake) == ["error: the overview of its image is gone from images/"]
    lake.images.picture(mine).write_bytes(jpeg(1))
    lake.images.picture("nobody").write_bytes(jpeg(1))
    step = "histolake.platform.lake.attempt:Attempt._commit_pairs"
    run_writer(lake.uri, "c/b", "one", 10, step).communicate(timeout=120)
    found = told(lake)
    assert "waste: nobody.jpg in images/ belongs to no version" in found
    assert len([text for text in found if re.fullmatch(r"waste: fragment \d+ belongs to no version", text)]) == 2
    assert "waste: rejections of no version" in found
    gone = "waste: a write lease of a process that is gone (ingest generated:c/b); its attempt may be complete"
    assert gone in found and not [text for text in found if text.startswith("error")]
    vacuum(lake, clock_slack_s=0)
    assert told(lake) == []


def test_what_a_live_ingest_has_written_is_not_told(lake: Lake) -> None:
    ingest(lake, "c/a")
    attempt = lake.begin("c/b", source_digest="1", settings_digest="s", source="x")
    lake.images.picture(attempt.ingest_id).write_bytes(jpeg(1))
    fragment = attempt.pairs.write(rows("c/b", 6))
    assert told(lake) == []
    attempt.stage({"n_spots": 6}, [fragment], pa.Table.from_pylist([{"rule": "min_genes"}]))
    assert told(lake) == []
    attempt.abandon()
    assert {text.split(":")[0] for text in told(lake)} == {"waste"}


def test_files_say_whether_a_value_is_missing(lake: Lake) -> None:
    """The short way to missing images: a fragment whose files say that none is missing is not read for it."""
    ingest(lake, "c/whole")
    ingest(lake, "c/a", at_three(spot_image=None))
    dataset = lake.pairs.open()
    fields = {f.name(): f.id() for f in dataset.lance_schema.fields() if f.name() in ("spot_image", "niche_image")}
    full = [sorted(without_nulls(lake.pairs.location, part, fields)) for part in dataset.get_fragments()]
    both = ["niche_image", "spot_image"]
    assert full == [both, both, ["niche_image"], both]


def test_the_command(lake: Lake) -> None:
    path = data_files(lake, ingest(lake, "c/a"))[0]
    command = [sys.executable, "-m", "histolake.platform", "lake", "check", "--lake", lake.uri, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and json.loads(done.stdout) == []
    path.unlink()
    done = subprocess.run([*command, "--deep"], capture_output=True, text=True, timeout=120)
    (row,) = json.loads(done.stdout)
    assert done.returncode == 1 and list(row) == list(Finding.__dataclass_fields__)
    assert row["severity"] == "error" and row["finding"].endswith("is gone") and "retile" in row["fix"]


def test_a_lake_in_a_store(bucket: str) -> None:
    lake = Lake.open(f"{bucket}/lake", create=True)
    ingest(lake, "c/a")
    mine = ingest(lake, "c/b", at_three(spot_image=None))
    export(lake.at(), ExportSpec(name="all"), lake.root.join("exports", "all"))
    assert told(lake) == ["error: 1 pairs have no spot_image"] == told(lake, deep=True)
    shard = lake.root.join("exports", "all", "all-000000.tar")
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    row = next(row for row in lake.catalog.slides().to_pylist() if row["ingest_id"] == mine)
    part = lake.pairs.open().get_fragment(row["fragments"][1]["id"])
    lake.pairs.location.join("data", part.data_files()[0].path).delete()
    assert [re.sub(r"file \w+|fragment \d+", "", text) for text in told(lake)] == [
        "error: data .lance of  is gone",
        "error: 1 pairs have no spot_image",
        "error: shard all-000000.tar of export all has another checksum than its manifest says",
    ]
