"""A curator's folder with every format in it, two sections broken, ingested by the commands of the README."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.ingestion.every_format import BROKEN, READERS, write_every_format

from histolake.ingestion.recorded import as_recorded
from histolake.ingestion.worker import source_digest
from histolake.platform.lake import Lake


@dataclass
class Ingested:
    folder: Path
    lake: Path
    rows: dict[str, dict[str, Any]]
    stderr: str


def run(*words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "histolake.platform", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == code, done.stderr
    return done


@pytest.fixture(scope="module")
def ingested(tmp_path_factory: pytest.TempPathFactory, make_section: Callable[..., Path]) -> Ingested:
    folder = tmp_path_factory.mktemp("curator")
    sections = folder / "sections"
    write_every_format(sections, make_section)
    with (folder / "patients.csv").open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["section", "patient", "study", "licence"])
        table.writerows([name, f"P{i}", "S", "CC BY 4.0"] for i, name in enumerate(READERS) if name != "hd")
        table.writerow(["visium/v9", "P99", "S", ""])
    words = ["ingest", str(sections), "--lake", str(folder / "lake"), "--cohort", "mixed", "--json"]
    words += ["--metadata", str(folder / "patients.csv"), "--set", "quality.min_spots=20"]
    done = run(*words, code=3)
    return Ingested(folder, folder / "lake", {r["section"]: r for r in json.loads(done.stdout)}, done.stderr)


def test_all_come_in_but_the_broken_ones(ingested: Ingested) -> None:
    assert {s: row["rule"] for s, row in ingested.rows.items() if row["status"] != "published"} == BROKEN
    slides = {row["section"]: row for row in Lake.open(ingested.lake).at().slides().to_pylist()}
    assert {name: row["reader"] for name, row in slides.items()} == READERS
    for name, slide in slides.items():
        assert slide["n_pairs"] >= 20, name
        assert slide["um_per_px"] > 0, name
        assert slide["scale_from"] in {s["origin"] for s in slide["scales"]}, name
    assert (slides["hd"]["patient"], slides["xenium"]["patient"], slides["xenium"]["licence"]) == (
        None,
        "P5",
        "CC BY 4.0",
    )


def test_the_table_s_mismatches_are_told(ingested: Ingested) -> None:
    assert "visium/v9" in ingested.stderr
    assert "hd" in ingested.stderr


def test_the_lake_holds_what_it_says(ingested: Ingested) -> None:
    assert json.loads(run("lake", "check", "--lake", str(ingested.lake), "--json").stdout) == []


def test_the_report_names_every_section_and_every_refusal(ingested: Ingested) -> None:
    page = ingested.folder / "report.html"
    run("lake", "report", "--lake", str(ingested.lake), "--cohort", "mixed", "--to", str(page))
    text = page.read_text()
    for name in [*READERS, *BROKEN, *BROKEN.values()]:
        assert name in text, name


def test_every_slide_is_found_again_as_it_was_recorded(ingested: Ingested) -> None:
    for row in Lake.open(ingested.lake).at().slides().to_pylist():
        again = as_recorded(row)
        assert again.problem is None, row["section"]
        assert (again.slide_id, again.uri) == (row["slide_id"], row["source"])
        assert source_digest(again) == row["source_digest"], row["section"]
