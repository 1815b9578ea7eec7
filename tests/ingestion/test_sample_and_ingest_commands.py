"""`histolake sample` and `histolake ingest` as a person runs them."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from histolake.ingestion.sample import HER2ST, choose
from histolake.platform.errors import UsageError
from histolake.platform.lake import Lake


def silent(_what: str, _done: int, _of: int) -> None:
    """Progress that nobody watches."""


def histolake(*words: str, **more: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HISTOLAKE_")}
    environment = kept | {"HISTOLAKE_CLUSTER__CPUS": "3", "HISTOLAKE_CLUSTER__OBJECT_STORE_MB": "128", "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, "-m", "histolake.platform", *words],
        env=environment | more,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def her2st_like(root: Path, make_section: Callable[..., Path]) -> Path:
    for seed, section in enumerate(HER2ST):  # the same tissue twice would be refused
        make_section(root / "her2st" / section, seed=seed)
    (root / "her2st/C2/C2.h5ad").write_text("a twin")
    (root / "dlpfc/151673").mkdir(parents=True)
    return root


def test_her2st_is_recognised_and_the_rest_left_aside(tmp_path: Path, make_section: Callable[..., Path]) -> None:
    data = her2st_like(tmp_path / "data", make_section)
    before = sorted(data.rglob("*"))
    chosen = choose(str(data), str(tmp_path / "to"), seed=0, tell=silent)
    assert (chosen.name, chosen.data) == ("her2st", "real")
    cohort = json.loads((tmp_path / "to/cohort.json").read_text())
    assert {s["section"]: s["path"] for s in cohort["sections"]} == {s: str(data / "her2st" / s) for s in HER2ST}
    assert "her2st/C2/C2.h5ad" in chosen.left_aside[0]
    assert "dlpfc/" in chosen.left_aside[1]
    rows = list(csv.DictReader((tmp_path / "to/metadata.csv").open()))
    assert {row["section"]: row["patient"] for row in rows} == HER2ST
    assert {row["simulated"] for row in rows} == {"false"}
    assert sorted(data.rglob("*")) == before
    (data / "her2st/C5").rename(data / "her2st/C9")
    with pytest.raises(UsageError, match="lacks the sections C5"):
        choose(str(data), str(tmp_path / "to"), seed=0, tell=silent)


def test_another_folder_of_sections_is_taken_as_it_is(tmp_path: Path, make_section: Callable[..., Path]) -> None:
    make_section(tmp_path / "mine/one")
    (tmp_path / "mine/other").mkdir()
    chosen = choose(str(tmp_path / "mine"), str(tmp_path / "to"), seed=0, tell=silent)
    assert (chosen.name, chosen.data, list(chosen.sections)) == ("mine", "real", ["one"])
    assert len(chosen.left_aside) == 1
    with pytest.raises(UsageError, match="no section that a reader knows"):
        choose(str(tmp_path / "mine/other"), str(tmp_path / "to"), seed=0, tell=silent)
    with pytest.raises(UsageError, match="There is no folder"):
        choose(str(tmp_path / "gone"), str(tmp_path / "to"), seed=0, tell=silent)


def test_from_sample_to_lake(tmp_path: Path, make_section: Callable[..., Path]) -> None:
    data = her2st_like(tmp_path / "data", make_section)
    sample = histolake("sample", "--to", str(tmp_path / "to"), "--json", HISTOLAKE_SAMPLE_DIR=str(data))
    assert sample.returncode == 0, sample.stderr
    assert [row["section"] for row in json.loads(sample.stdout)] == list(HER2ST)
    assert "her2st (real)" in sample.stderr
    (data / "her2st/C4/spots.tsv").unlink()
    words = ["ingest", str(tmp_path / "to/cohort.json"), "--lake", str(tmp_path / "lake"), "--cohort", "her2st"]
    plan = histolake(*words, "--plan", "--json")
    assert plan.returncode == 3, plan.stderr
    assert not (tmp_path / "lake").exists()
    run = histolake(*words, "--set", "patches.jpeg_quality=80", "--json")
    assert run.returncode == 3, run.stderr
    rows = {row["slide_id"]: row for row in json.loads(run.stdout)}
    assert rows["her2st/C4"]["rule"] == "missing_file"
    assert [rows[f"her2st/{s}"]["status"] for s in ("A1", "C2", "C3", "C5")] == ["published"] * 4
    assert run.stderr.rstrip().splitlines()[-1].endswith("refused: her2st/C4 (missing_file)")
    slides = Lake.open(tmp_path / "lake").at().slides().to_pylist()
    assert [(row["section"], row["patient"]) for row in slides] == [("A1", "A"), ("C2", "C"), ("C3", "C"), ("C5", "C")]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["in", "--cohort", "c"], "No lake is named"),
        (["in", "--lake", "lake"], "No cohort is named"),
        (["gone", "--lake", "lake", "--cohort", "c"], "nothing at"),
        (["in", "--lake", "lake", "--cohort", "c", "--set", "min_genes=3"], "SECTION.KEY=VALUE"),
        (["in", "--lake", "lake", "--cohort", "c", "--set", "quality.min_genes=many"], "quality.min_genes"),
    ],
)
def test_a_usage_mistake_is_one_sentence_and_exit_code_2(
    tmp_path: Path, make_section: Callable[..., Path], words: list[str], said: str
) -> None:
    make_section(tmp_path / "in")
    found = histolake("ingest", *(str(tmp_path / word) if word in ("in", "gone", "lake") else word for word in words))
    assert found.returncode == 2
    assert said in found.stderr
    assert "Traceback" not in found.stderr
    assert not (tmp_path / "lake").exists()
