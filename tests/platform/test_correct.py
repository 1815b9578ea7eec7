"""Corrections: the catalogue is set right, the pairs stay, older versions read as before, and nothing undoes it in
silence."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from histolake.platform.errors import ConflictError, SlideNotFoundError, UsageError
from histolake.platform.lake import Lake
from histolake.platform.lake.audit import check
from histolake.platform.lake.correct import Change, corrections
from histolake.platform.lake.forgetting import forget, ingests_of
from histolake.platform.lake.vacuum import vacuum
from histolake.platform.schemas import PAIRS
from histolake.platform.splits import Split

NO_REJECTIONS = pa.table({"rule": pa.array([], pa.string())})


def correct(lake: Lake, slide_id: str, **values: str | None) -> int:
    return lake.correct(corrections(lake.at(), {slide_id: values}))


def live(lake: Lake, slide_id: str = "c/a", version: int | None = None) -> dict[str, Any]:
    (row,) = (r for r in lake.at(version).slides().to_pylist() if r["slide_id"] == slide_id)
    return row  # type: ignore[no-any-return] # Arrow has no types


def pairs(lake: Lake, version: int | None = None) -> list[Any]:
    return [row for batch in lake.at(version).pairs(PAIRS.names) for row in batch.to_pylist()]


def ingest(lake: Lake, digest: str, **record: Any) -> str:
    """Ingest c/a anew from a source that says this; gives the attempt's state."""
    attempt = lake.begin("c/a", source_digest=digest, settings_digest="plain", source="generated:c/a")
    if attempt.state == "new":
        said = {"cohort": "c", "section": "a", "n_spots": 4, **record}
        attempt.stage(said, [attempt.pairs.write(_rows(digest))], NO_REJECTIONS)
    lake.publish([attempt])
    return attempt.state


def _rows(digest: str) -> pa.Table:
    columns = {name: [f"{digest}{n}" for n in range(4)] for name in ("slide_id", "ingest_id", "barcode", "sentence")}
    made = [
        dict.fromkeys(PAIRS.names) | {k: v[n] for k, v in columns.items()} | {"pair_id": bytes([n]) * 16}
        for n in range(4)
    ]
    return pa.Table.from_pylist(made, schema=PAIRS)


def test_a_correction_is_one_version_and_leaves_the_pairs(lake: Lake, writer: ModuleType) -> None:
    writer.ingest(lake, "c/a", "one", 20, patient="P1")
    writer.ingest(lake, "c/b", "one", 6, patient="P2")
    before, rows = live(lake), pairs(lake)
    files = sorted(str(path) for path in (Path(lake.uri) / "pairs.lance").rglob("*"))

    changes = corrections(lake.at(), {"c/a": {"patient": "P7", "organ": "breast", "study": "study"}})
    assert changes == [
        Change(slide_id="c/a", column="organ", old=None, new="breast"),
        Change(slide_id="c/a", column="patient", old="P1", new="P7"),
    ], "what is so already is no change"
    assert lake.correct(changes) == 3 == lake.version
    after = live(lake)
    assert (after["patient"], after["organ"], after["published_in"]) == ("P7", "breast", 3)
    assert after["corrected"] == [{"column": "organ", "said": None}, {"column": "patient", "said": "P1"}]
    same = set(before) - {"patient", "organ", "published_in", "corrected", "when"}
    assert {name: after[name] for name in same} == {name: before[name] for name in same}
    assert pairs(lake) == rows
    assert files == sorted(str(path) for path in (Path(lake.uri) / "pairs.lance").rglob("*"))
    assert lake.at().rejections("slide_id = 'c/a'").num_rows == 2
    assert live(lake, version=2) == before | {"retired_in": 3} and pairs(lake, 2) == rows
    assert lake.correct(changes) == 3, "the same again is no commit"
    assert check(lake) == []

    # Undone by correcting back.
    assert correct(lake, "c/a", patient="P1", organ="") == 4
    assert (live(lake)["patient"], live(lake)["organ"], live(lake)["corrected"]) == ("P1", None, None)
    vacuum(lake, clock_slack_s=0)
    assert check(lake) == [] and pairs(lake) == pairs(lake, 3) == rows


def test_splits_follow_the_correction_from_its_version_on(lake: Lake, writer: ModuleType) -> None:
    writer.ingest(lake, "c/a", "one", 4, patient="P1")
    writer.ingest(lake, "c/b", "one", 4, patient="P2")
    split = Split.named(train=["c/a"], test=["c/b"])
    correct(lake, "c/b", patient="P1")
    assert split.cuts(lake.at(2).slides()) == []
    assert [cut.what for cut in split.cuts(lake.at().slides())] == [("study", "P1")]


def test_a_correction_stands_until_the_source_says_something_new(lake: Lake) -> None:
    ingest(lake, "one", patient="P1", study="S")
    correct(lake, "c/a", patient="P7", study=None)
    version = lake.version

    assert ingest(lake, "one", patient="P1", study="S") == "unchanged" and lake.version == version
    # Other settings, or other files, with the metadata of old.
    assert ingest(lake, "two", patient="P1", study="S") == "new"
    assert (live(lake)["patient"], live(lake)["study"]) == ("P7", None)
    assert ingest(lake, "two", patient="P1", study="S") == "unchanged"
    # A source that says nothing of the patient, then one that says what was corrected: still remembered.
    for digest, said in (("three", None), ("four", "P7"), ("five", "P1")):
        ingest(lake, digest, patient=said, study="S")
        assert live(lake)["patient"] == "P7", digest
        assert {"column": "patient", "said": "P1"} in live(lake)["corrected"]
    # The source is mended.
    ingest(lake, "six", patient="P8", study="S")
    assert (live(lake)["patient"], live(lake)["study"]) == ("P8", None)
    assert live(lake)["corrected"] == [{"column": "study", "said": "S"}]


def test_a_refused_source_of_a_corrected_slide_keeps_the_correction(lake: Lake) -> None:
    ingest(lake, "one", patient="P1")
    correct(lake, "c/a", patient="P7")
    attempt = lake.begin("c/a", source_digest="bad", settings_digest="plain", source="generated:c/a")
    attempt.refuse({"cohort": "c", "section": "a", "n_spots": 0}, pa.table({"rule": ["unreadable"]}))
    lake.publish([attempt])
    rows = lake.at().slides(include_refused=True).to_pylist()
    assert [(row["status"], row["patient"]) for row in rows] == [("published", "P7"), ("refused", "P7")]
    correct(lake, "c/a", patient="P9")
    rows = lake.at().slides(include_refused=True).to_pylist()
    assert [(row["status"], row["patient"]) for row in rows] == [("published", "P9"), ("refused", "P9")]


@pytest.mark.parametrize("name", ["Jane", "Jill"])
def test_forgetting_finds_a_patient_by_the_name_before_and_after(lake: Lake, writer: ModuleType, name: str) -> None:
    writer.ingest(lake, "c/mine", "one", 8, patient="Jane")
    correct(lake, "c/mine", patient="Jill")
    writer.ingest(lake, "c/other", "one", 8, patient="John")
    assert set(ingests_of(lake, patient=("study", name))["slide_id"].to_pylist()) == {"c/mine"}
    receipt = forget(lake, patient=("study", name))
    assert (receipt.slides, receipt.pairs, receipt.rejections, receipt.catalog_rows) == (["c/mine"], 8, 2, 2)
    for path in (path for path in Path(lake.uri).rglob("*") if path.is_file()):
        held = path.read_bytes()
        held += repr(pq.read_table(path).to_pylist()).encode() if path.suffix == ".parquet" else b""
        assert not any(word in held for word in (b"c/mine", b"Jane", b"Jill")), path
    assert check(lake) == [] and lake.at(1).slides().num_rows == 0


def test_a_missing_fragment_of_a_corrected_slide_is_told_once(lake: Lake, writer: ModuleType) -> None:
    writer.ingest(lake, "c/a", "one", 8)
    correct(lake, "c/a", patient="P7")
    row = live(lake)
    lake.pairs.drop({row["ingest_id"]: [row["fragments"][0]["id"]]})
    assert len([finding for finding in check(lake) if finding.severity == "error"]) == 1


def test_what_cannot_be_corrected(lake: Lake, writer: ModuleType) -> None:
    writer.ingest(lake, "c/a", "one", 8)
    with pytest.raises(
        UsageError, match=r"um_per_px is not corrected .* `histolake lake retile`; accession, .* can be"
    ):
        corrections(lake.at(), {"c/a": {"um_per_px": "0.5"}})
    with pytest.raises(UsageError, match="'patent' cannot be corrected; accession, disease"):
        corrections(lake.at(), {"c/a": {"patent": "P"}})
    with pytest.raises(SlideNotFoundError, match="no slide c/z"):
        corrections(lake.at(), {"c/z": {"patient": "P"}})
    stale = corrections(lake.at(), {"c/a": {"patient": "P7"}})
    correct(lake, "c/a", patient="P2")
    with pytest.raises(ConflictError, match="patient of c/a changed in the meantime"):
        lake.correct(stale)


# The columns of `catalog/slides` as version 1 had them.
SLIDES_V1 = pa.schema(
    [
        *((name, pa.string()) for name in ("slide_id", "ingest_id")),
        *((name, pa.int64()) for name in ("published_in", "retired_in")),
        ("status", pa.string()),
        *((name, pa.int64()) for name in ("n_pairs", "n_spots", "n_rejections")),
        ("fragments", pa.list_(pa.struct([("id", pa.int64()), ("rows", pa.int64())]))),
        *((name, pa.string()) for name in ("source_digest", "settings_digest")),
        ("when", pa.timestamp("us", tz="UTC")),
        *((name, pa.string()) for name in ("software", "cohort", "section")),
        ("simulated", pa.bool_()),
        ("flags", pa.list_(pa.string())),
        *((name, pa.string()) for name in ("source", "reader", "accession", "licence", "study", "patient", "organ")),
        *((name, pa.string()) for name in ("species", "disease", "technology", "expression_unit")),
        ("um_per_px", pa.float64()),
        ("image", pa.string()),
        *((name, pa.int64()) for name in ("image_width_px", "image_height_px")),
        *((name, pa.float64()) for name in ("spot_diameter_um", "pitch_um", "spot_um", "niche_um")),
    ]
)


def test_a_lake_of_the_first_schema_is_read_published_to_and_corrected(tmp_path: Path) -> None:
    lake = Lake.open(tmp_path / "lake", create=True)
    place = tmp_path / "lake" / "catalog" / "slides"
    for path in sorted(place.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    DeltaTable.create(str(place), schema=SLIDES_V1, configuration={"delta.dataSkippingStatsColumns": "published_in"})
    assert lake.version == 0 and lake.at().slides().num_rows == 0
    row = {
        "slide_id": "c/old",
        "ingest_id": "old",
        "published_in": 1,
        "status": "refused",
        "patient": "P1",
        "n_pairs": 0,
    }
    lake.catalog.append("slides", pa.Table.from_pylist([row], schema=SLIDES_V1))

    assert lake.at(1).slides(include_refused=True, where="image_hash is null and patient = 'P1'").num_rows == 1
    ingest(lake, "one", patient="P1", scales=[{"origin": "pitch", "um_per_px": 0.5}], flags=["x"])
    assert live(lake)["scales"] == [{"origin": "pitch", "um_per_px": 0.5}] and live(lake)["flags"] == ["x"]
    ingest(lake, "two", patient="P1")
    correct(lake, "c/old", patient="P2")
    rows = lake.at().slides(include_refused=True).to_pylist()
    assert [(r["slide_id"], r["patient"], r["corrected"]) for r in rows] == [
        ("c/a", "P1", None),
        ("c/old", "P2", [{"column": "patient", "said": "P1"}]),
    ]
    assert lake.at(1).slides(include_refused=True)["patient"].to_pylist() == ["P1"]
    assert check(lake) == []
