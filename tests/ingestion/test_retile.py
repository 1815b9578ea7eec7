"""What curators do with a lake: plan an ingest, join tables, correct, cut again; as commands, on real files."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from histolake.platform.cli import app
from histolake.platform.errors import SlideNotFoundError, UsageError
from histolake.platform.lake import Lake
from histolake.platform.lake.audit import check

RULES = ["--set", "quality.min_spots=40"]


def run(*words: str, answer: str | None = None) -> Result:
    done = CliRunner().invoke(app, list(words), input=answer)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def told(*words: str, code: int = 0) -> dict[str, dict[str, Any]]:
    done = run(*words, "--json")
    assert done.exit_code == code, done.stderr
    return {row["slide_id"]: row for row in json.loads(done.stdout)}


@pytest.fixture
def place(tmp_path: Path, ray_here: None, make_section: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three sections and their tables; the lake's URI is in the environment."""
    for number, name in enumerate(("s1", "s2", "deep/s3"), start=1):
        make_section(tmp_path / "in" / name, seed=number)
    (tmp_path / "sections.csv").write_text("section,patient,study\ns1,P1,S\ns2,P2,S\ndeep/s3,P1,S\ngone,P9,S\n")
    (tmp_path / "patients.tsv").write_text("patient\tstudy\torgan\tlicense\nP1\tS\tbreast\tCC BY 4.0\nP2\tS\tskin\t\n")
    monkeypatch.setenv("HISTOLAKE_LAKE", str(tmp_path / "lake"))
    return tmp_path


def ingest_words(place: Path) -> list[str]:
    tables = [word for name in ("sections.csv", "patients.tsv") for word in ("--metadata", str(place / name))]
    return ["ingest", str(place / "in"), "--cohort", "c", *tables, *RULES]


def spot_widths(lake: Lake) -> dict[str, set[int]]:
    return {
        slide_id: {
            Image.open(io.BytesIO(picture)).width
            for batch in lake.at().pairs(["spot_image"], [slide_id])
            for picture in batch["spot_image"].to_pylist()
        }
        for slide_id in lake.at().slides()["slide_id"].to_pylist()
    }


def test_planned_ingested_corrected_and_cut_again(place: Path) -> None:
    # A plan: pairs, bytes, time, and nothing written.
    planned = told(*ingest_words(place), "--plan")
    assert {row["status"] for row in planned.values()} == {"planned"} and not (place / "lake").exists()
    estimated = sum(row["estimated_bytes"] for row in planned.values())
    assert all(row["estimated_seconds"] > 0 for row in planned.values())

    done = run(*ingest_words(place), "--mismatches", str(place / "mismatches.csv"))
    assert done.exit_code == 0, done.stderr
    assert "1 mismatches of the metadata" in done.stderr and "line 5: no section was found for section" in done.stderr
    assert [row["kind"] for row in csv.DictReader((place / "mismatches.csv").open())] == ["unused_row"]
    lake = Lake.open(place / "lake")
    slides = {row["section"]: row for row in lake.at().slides().to_pylist()}
    assert {s: (row["patient"], row["organ"], row["licence"]) for s, row in slides.items()} == {
        "s1": ("P1", "breast", "CC BY 4.0"),
        "s2": ("P2", "skin", None),
        "deep/s3": ("P1", "breast", "CC BY 4.0"),
    }
    written = sum(path.stat().st_size for path in (place / "lake/pairs.lance/data").iterdir())
    assert 0.5 < estimated / written < 2

    # Corrected, and an ingest of the same files with the old table undoes nothing.
    assert run("lake", "correct", "--slide", "c/s1", "--set", "patient=P7", "--yes").exit_code == 0
    version = lake.version
    again = told(*ingest_words(place))
    assert {row["status"] for row in again.values()} == {"unchanged"} and lake.version == version
    assert again["c/s1"]["corrected"] == "patient"

    # Cut again with wider patches; one source is gone, one has changed.
    shutil.rmtree(place / "in/deep")
    (place / "in/s2/section.json").write_text('{"disease": "found out later"}')
    plan = told("lake", "retile", "--where", "true", "--set", "patches.spot_um=150", *RULES, "--plan", code=3)
    cut = told("lake", "retile", "--where", "true", "--set", "patches.spot_um=150", *RULES, code=3)
    assert {s: (row["status"], row["rule"]) for s, row in cut.items()} == {
        "c/deep/s3": ("left", "source_gone"),
        "c/s1": ("published", None),
        "c/s2": ("left", "source_changed"),
    }
    assert {s: row["status"] for s, row in plan.items()} == {"c/deep/s3": "left", "c/s1": "planned", "c/s2": "left"}
    assert spot_widths(lake) == {"c/s1": {30}, "c/s2": {20}, "c/deep/s3": {20}}
    now = {row["section"]: row for row in lake.at().slides().to_pylist()}
    assert (now["s1"]["patient"], now["s1"]["organ"], now["s1"]["spot_um"]) == ("P7", "breast", 150.0)
    assert now["s1"]["source_digest"] == slides["s1"]["source_digest"] != now["s1"]["settings_digest"]
    assert (now["s2"]["ingest_id"], now["deep/s3"]["ingest_id"]) == (
        slides["s2"]["ingest_id"],
        slides["deep/s3"]["ingest_id"],
    )
    # The plain ingest under these settings finds its work done, the correction with it.
    same = told(*ingest_words(place), "--set", "patches.spot_um=150")
    assert same["c/s1"]["status"] == "unchanged" and same["c/s2"]["status"] == "published"
    assert [finding for finding in check(lake) if finding.severity == "error"] == []

    differences = {row["slide_id"]: row for row in json.loads(run("lake", "diff", "1", "--json").stdout)}
    assert differences["c/s1"]["change"] == "replaced" and "patient: P1 -> P7" in differences["c/s1"]["values"]
    history = json.loads(run("lake", "history", "--json").stdout)
    assert [(row["version"], row["published"], row["corrected"], row["retired"]) for row in history[:3]] == [
        (1, 3, 0, 0),
        (2, 0, 1, 0),
        (3, 1, 0, 1),
    ]
    shown = run("lake", "show", "c/s1").stdout
    assert "(corrected; the source says P1)" in shown and "CC BY 4.0 (CC-BY-4.0)" in shown


def test_correcting_by_filter_and_by_table(place: Path, writer: Any) -> None:
    lake = Lake.open(place / "lake", create=True)
    for name in ("s1", "s2", "s3"):
        attempt = lake.begin(f"c/{name}", source_digest=name, settings_digest="x", source=name)
        fragment = attempt.pairs.write(writer.rows(f"c/{name}", "1", 4))
        record = {"cohort": "c", "section": name, "patient": "P1", "study": "S", "um_per_px": 0.5, "n_spots": 4}
        attempt.stage(record, [fragment], pa.table({"rule": pa.array([], pa.string())}))
        lake.publish([attempt])

    # Shown, and asked about.
    asked = run("lake", "correct", "--where", "section <> 's3'", "--set", "organ=skin", answer="n\n")
    assert asked.exit_code == 1 and lake.version == 3 and "c/s2" in asked.stdout and "Correct?" in asked.stderr
    planned = run("lake", "correct", "--where", "section <> 's3'", "--set", "organ=skin", "--plan", "--json")
    assert [(row["slide_id"], row["old"], row["new"]) for row in json.loads(planned.stdout)] == [
        ("c/s1", None, "skin"),
        ("c/s2", None, "skin"),
    ]
    assert lake.version == 3
    assert run("lake", "correct", "--where", "section <> 's3'", "--set", "organ=skin", answer="y\n").exit_code == 0
    assert lake.version == 4 and lake.at().slides(where="organ = 'skin'").num_rows == 2

    table = place / "t.csv"
    table.write_text("section,patient,um_per_px\ns1,P5,0.25\ns2,P1,0.5\nnobody,P3,\n")
    done = run("lake", "correct", "--metadata", str(table), "--yes")
    assert done.exit_code == 0 and lake.version == 5
    assert lake.at().slides()["patient"].to_pylist() == ["P5", "P1", "P1"]
    assert "um_per_px of c/s1 is 0.5 in the lake and '0.25' here; it is not corrected" in done.stderr
    assert "line 4: no section was found for section 'nobody'" in done.stderr
    done = run("lake", "correct", "--metadata", str(table), "--yes")
    assert lake.version == 5 and "Everything is so already" in done.stderr

    for words, said in (
        (["--slide", "c/s1"], "either with --set COLUMN=VALUE or with --metadata"),
        (["--set", "patient=P"], "Name the slides to correct"),
        (["--slide", "c/s1", "--set", "patient"], "write COLUMN=VALUE"),
        (["--slide", "c/s1", "--set", "species=mouse"], "species is not corrected"),
        (["--where", "patent = 'x'", "--set", "patient=P"], "no column"),
    ):
        with pytest.raises(UsageError, match=said):
            run("lake", "correct", *words)
    with pytest.raises(SlideNotFoundError, match="no slide c/zz"):
        run("lake", "correct", "--slide", "c/zz", "--set", "patient=P")
