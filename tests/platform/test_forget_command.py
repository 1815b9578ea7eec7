"""`histolake lake forget`: whom a name means, what is shown before, the receipt, and who is told afterwards."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from typer.testing import CliRunner

from histolake.platform.cli import app
from histolake.platform.errors import ConflictError, SlideNotFoundError, UsageError
from histolake.platform.export import ExportSpec, export
from histolake.platform.lake import Lake
from histolake.platform.lake.audit import check
from histolake.platform.lake.correct import corrections
from histolake.platform.lake.expire import expire
from histolake.platform.lake.forgetting import find_patient, forget
from histolake.platform.lake.forgotten import begin, finish_entry, forgotten_of, lost, notice, outlived, write
from histolake.platform.lake.snapshot import Snapshot
from histolake.platform.storage import Location
from histolake.platform.tracking import TAG_LAKE_URI, TAG_LAKE_VERSION, TrackingSettings, connect, ensure_experiment

LIVE = {"status": "published"}


def invoke(*words: str) -> Any:
    return CliRunner().invoke(app, list(words), catch_exceptions=False)


def run(lake: Lake, *words: str) -> Any:
    return invoke("lake", "forget", *words, "--lake", lake.uri)


@pytest.fixture
def studies(lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lake:
    """1 A/P1, 2 B/P1, 3 B/P2, 4 P3 of no study; the working folder is the test's own."""
    monkeypatch.chdir(tmp_path)
    for number, (study, patient) in enumerate((("A", "P1"), ("B", "P1"), ("B", "P2"), (None, "P3"))):
        attempt = lake.begin(f"c/s{number}", source_digest="1", settings_digest="plain", source="x")
        attempt.refuse({"cohort": "c", "n_spots": 0, "study": study, "patient": patient}, _reasons())
        lake.publish([attempt])
    return lake


def _reasons() -> Any:
    import pyarrow as pa

    return pa.table({"rule": ["min_spots"], "reason": ["3 spots."]})


def test_a_bare_patient_is_of_one_study_or_refused(studies: Lake) -> None:
    with pytest.raises(UsageError, match=r"--patient P1 may be A/P1, B/P1; name one of them"):
        find_patient(studies, "P1")
    assert find_patient(studies, "P2") == ("B", "P2") == find_patient(studies, "B/P2")
    assert find_patient(studies, "P3") == (None, "P3") == find_patient(studies, "/P3")
    with pytest.raises(SlideNotFoundError, match="no patient C/P1"):
        find_patient(studies, "C/P1")
    # A name that was corrected still counts.
    studies.correct(corrections(studies.at(), {"c/s2": {"patient": "P1"}}))
    assert find_patient(studies, "P2") == ("B", "P2")
    assert run(studies, "--patient", "B/P1", "--yes").exit_code == 0
    left = studies.at().slides(include_refused=True)
    assert left["slide_id"].to_pylist() == ["c/s0", "c/s3"]
    assert find_patient(studies, "P1") == ("A", "P1"), "now one study has it"


def test_a_study_that_was_withdrawn(studies: Lake) -> None:
    done = run(studies, "--study", "B", "--yes", "--json")
    assert done.exit_code == 0 and json.loads(done.stdout)[0]["asked"] == "study B"
    assert studies.at().slides(include_refused=True)["slide_id"].to_pylist() == ["c/s0", "c/s3"]
    with pytest.raises(SlideNotFoundError, match="no study B"):
        run(studies, "--study", "B", "--yes")
    for words in ((), ("--study", "A", "--slide", "c/s0")):
        with pytest.raises(UsageError, match="one of --slide SLIDE, --patient STUDY/PATIENT and --study"):
            run(studies, *words)


def test_the_receipt_is_there_before_anything_goes_and_is_never_overwritten(studies: Lake, tmp_path: Path) -> None:
    version = studies.version
    planned = run(studies, "--slide", "c/s0", "--plan", "--json")
    assert json.loads(planned.stdout)[0]["state"] == "planned" and "catalog/slides: 1 rows" in planned.stderr
    assert studies.version == version and not list(tmp_path.glob("*.json"))
    assert run(studies, "--slide", "c/s0").exit_code == 1, "not confirmed"
    assert studies.version == version and not list(tmp_path.glob("*.json"))

    inside = studies.root.join("receipts", "mine.json").uri
    with pytest.raises(UsageError, match="would lie in the lake"):
        run(studies, "--slide", "c/s0", "--receipt", inside, "--yes")
    taken = tmp_path / "taken.json"
    taken.write_text("another receipt")
    with pytest.raises(UsageError, match="is there already"):
        run(studies, "--slide", "c/s0", "--receipt", str(taken), "--yes")
    assert taken.read_text() == "another receipt" and studies.version == version

    assert run(studies, "--slide", "c/s0", "--yes").exit_code == 0
    (receipt,) = tmp_path.glob("forgotten-*.json")
    told = json.loads(receipt.read_text())
    assert (told["state"], told["slides"], told["rejections"], told["catalog_rows"]) == ("done", ["c/s0"], 1, 1)
    assert told["version_after"] > told["version_before"] == version
    assert {entry["table"]: entry["rows"] for entry in told["tables"]} == {"catalog/slides": 1, "catalog/rejections": 1}


def test_a_model_that_saw_them_is_named_and_says_so(
    lake: Lake, writer: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for slide_id in ("c/a", "c/b"):
        writer.ingest(lake, slide_id, "one", 4, patient=slide_id[-1])
    _register(lake)
    lines = invoke("models", "lineage", "omiclip/1")
    assert lines.exit_code == 0 and "forgotten" not in lines.stdout + lines.stderr

    assert run(lake, "--patient", "a", "--yes").exit_code == 0
    (receipt,) = tmp_path.glob("forgotten-*.json")
    assert json.loads(receipt.read_text())["models"] == ["omiclip/1 (train)"]
    traced = invoke("models", "lineage", "omiclip/1", "--json")
    assert {row["slide_id"]: row["now"] for row in json.loads(traced.stdout)} == {
        "c/a": "forgotten",
        "c/b": "in the lake",
    }
    assert "1 of 2 slides that omiclip/1 saw were forgotten since." in traced.stderr
    (row,) = json.loads(invoke("models", "--json").stdout)
    assert row["forgotten"].startswith("1 on 20")
    # Who reads the version, to list it, to export or to train from it, is told in one line.
    for words in (("lake", "slides"), ("export", "again")):
        done = invoke(*words, "--version", "2", "--lake", lake.uri)
        assert done.exit_code == 0 and done.stderr.count("1 slide of version 2 was forgotten on 20") == 1
    assert "forgotten" not in invoke("lake", "slides", "--lake", lake.uri).stderr
    lake.root.delete()
    assert "cannot be opened here" in invoke("models", "lineage", "omiclip/1").stderr


def _register(lake: Lake) -> None:
    """A registered version that was trained on both slides, with a run as training leaves it."""
    settings = TrackingSettings()
    client = connect(settings)
    rows = lake.at().slides().select(["slide_id", "ingest_id"]).to_pylist()
    lineage = [{**row, "side": "train", "study": "study", "patient": "p", "source": "x"} for row in rows]
    run_id = client.create_run(ensure_experiment(settings, client)).info.run_id
    place = Path("lineage.json")
    place.write_text(json.dumps(lineage))
    client.log_artifact(run_id, str(place))
    place.unlink()
    client.create_registered_model("omiclip")
    tags = {TAG_LAKE_URI: lake.uri, TAG_LAKE_VERSION: str(lake.version)}
    client.create_model_version("omiclip", source=f"runs:/{run_id}/model", run_id=run_id, tags=tags)


def test_an_export_of_what_is_forgotten_meanwhile_is_not_left_behind(lake: Lake, writer: ModuleType) -> None:
    writer.ingest(lake, "c/a", "one", 4)
    writer.ingest(lake, "c/b", "one", 4)

    class Late(Snapshot):
        """A reader whose last batch comes after the slide was forgotten."""

        def pairs(self, *args: Any, **kwargs: Any) -> Any:
            batches = list(super().pairs(*args, **kwargs))
            assert to.join("planned.json").exists()
            forget(Lake.open(lake.uri), slide_id="c/b")
            return iter(batches)

    to = lake.root.join("exports", "late")
    snapshot = lake.at()
    late = Late(lake, snapshot.version, snapshot.slides())
    with pytest.raises(ConflictError, match="forgotten while they were exported"):
        export(late, ExportSpec(name="late"), to)
    assert not to.exists() and check(lake) == []
    with pytest.raises(UsageError, match="where forgetting would not find it"):
        export(lake.at(), ExportSpec(name="aside"), lake.root.join("aside"))
    assert export(lake.at(), ExportSpec(name="here"), Location.parse(f"{lake.uri}-aside")).pairs == 4


def test_forgetting_a_slide_lets_another_be_of_what_it_was_refused_for(lake: Lake, writer: ModuleType) -> None:
    """c/b is published, and its later source was refused for looking like c/a: only the refusal goes."""
    for slide_id in ("c/a", "c/b"):
        writer.ingest(lake, slide_id, "one", 4)
    attempt = lake.begin("c/b", source_digest="two", settings_digest="plain", source="x")
    attempt.refuse({"cohort": "c", "n_spots": 4, "look_alikes": ["c/a"]}, _reasons())
    lake.publish([attempt])
    receipt = forget(lake, slide_id="c/a")
    assert receipt.look_alikes == ["c/b"] and receipt.rejections == 2 and receipt.slides == ["c/a"]
    rows = lake.at().slides(include_refused=True).to_pylist()
    assert [(row["slide_id"], row["status"]) for row in rows] == [("c/b", "published")]


def test_what_is_remembered_names_nobody_and_goes_with_the_versions(lake: Lake, writer: ModuleType) -> None:
    for slide_id, digest in (("c/a", "one"), ("c/b", "one"), ("c/a", "two"), ("c/c", "one")):
        writer.ingest(lake, slide_id, digest, 4)
    forget(lake, slide_id="c/a")
    forget(lake, slide_id="c/c")
    entries = forgotten_of(lake.catalog.properties())
    assert [lost(entries, version) for version in range(lake.version + 1)][:6] == [0, 1, 1, 1, 2, 2]
    assert lost(entries, lake.version) == 0 and all(not entry.pending for entry in entries)
    assert "2 slides of version 4 were forgotten on 20" in str(notice(entries, 4))
    assert "c/" not in json.dumps(lake.catalog.properties())
    expire(lake, lake.version, list)
    assert forgotten_of(lake.catalog.properties()) == []


def test_the_same_forgetting_begun_twice_is_counted_once() -> None:
    rows = [
        {"slide_id": "a", "published_in": 1, "retired_in": 3, **LIVE},
        {"slide_id": "a", "published_in": 3, "retired_in": None, **LIVE},
        {"slide_id": "b", "published_in": 3, "retired_in": None, **LIVE},
        {"slide_id": "b", "published_in": 2, "retired_in": None, "status": "refused"},
    ]
    entries, (key,) = begin([], rows, ["x", "y"], "2026-11-21T10:00:00+00:00")
    assert begin(entries, rows, ["y", "x"], "2026-11-22T10:00:00+00:00") == (entries, [key])
    assert forgotten_of(write(entries)) == entries and entries[0].pending == ("x", "y") and entries[0].slides == 2
    done = finish_entry(entries, key, 9)
    assert [lost(done, version) for version in (0, 1, 2, 3, 8, 9)] == [0, 1, 1, 2, 2, 0] and not done[0].pending
    other, _ = begin(done, rows[:1], ["z"], "2026-11-23T10:00:00+00:00")
    assert notice(other, 1) == "2 slides of version 1 were forgotten between 2026-11-21 and 2026-11-23; " + (
        "it reads without them."
    )
    assert outlived(done, 8) == done and outlived(done, 9) == [] and outlived(entries, 99) == entries
    assert write([]) == {"histolake.forgotten": ""}


def test_a_forgetting_that_has_not_ended_is_told_and_finished(
    lake: Lake, writer: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for slide_id in ("c/a", "c/b"):
        writer.ingest(lake, slide_id, "one", 4)
    mine = lake.at().slides().to_pylist()[0]
    entries, _ = begin([], [mine], [mine["ingest_id"]], "2026-11-21T10:00:00+00:00")
    lake.catalog.change_properties(lambda newest, held: write(entries))  # as if the process had died here
    (finding,) = check(lake)
    assert finding.severity == "error" and "begun at 2026-11-21T10:00" in finding.finding and "--finish" in finding.fix
    assert "1 forgettings were finished" in run(lake, "--finish").stderr
    assert check(lake) == [] and lake.at().slides()["slide_id"].to_pylist() == ["c/b"]
    assert "0 forgettings were finished" in run(lake, "--finish").stderr
