"""The benchmarks run and give figures; the page of figures is what its result says. Whether the figures are good is not
asked here: a machine that runs tests does other things too."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CHEAP = ("reading",)  # seconds each with --quick


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """What the harness writes of the cheap benchmarks."""
    out = tmp_path_factory.mktemp("bench") / "ingest.json"
    command = [sys.executable, "-m", "tests.benchmarks.bench_ingest", "--quick", "--out", str(out)]
    only = [word for name in CHEAP for word in ("--only", name)]
    done = subprocess.run([*command, *only], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "random_vs_parquet" in done.stdout and ">= 1" in done.stdout
    found: dict[str, object] = json.loads(out.read_text())
    return found


def test_figures_are_named_flat_and_finite(figures: dict[str, object]) -> None:
    numbers = {key: value for key, value in figures.items() if isinstance(value, (int, float))}
    assert set(figures) - set(numbers) == {"machine", "when", "commit_reading"}
    assert all(math.isfinite(value) for value in numbers.values())
    for way in ("random", "scan"):
        for other in ("parquet", "webdataset"):
            settings = [value for key, value in numbers.items() if key.startswith(f"{way}_vs_{other}_")]
            rates = [value for value in settings if not isinstance(value, bool)]
            assert numbers[f"{way}_vs_{other}"] == min(rates) > 0, "the plain figure is the worst"
    assert numbers["quick"] is True and numbers["minutes"] > 0


def test_a_result_tells_nothing_of_the_machine_but_what_it_is(figures: dict[str, object]) -> None:
    import platform

    told = json.dumps(figures)
    assert "cores of" in str(figures["machine"]) and platform.python_version() in told
    assert str(Path.home()) not in told and str(ROOT) not in told and platform.node() not in told


def test_the_table_tells_goals_and_by_how_much_they_are_missed() -> None:
    from tests.benchmarks.page import table

    told = table({"codec_ratio": 0.35, "worker_peak_mb": 900.0, "pairs_per_s": 12_345.6, "when": "now"})
    assert told.splitlines()[2:] == [
        "| `codec_ratio` | 0.35 | >= 0.7 | no, by 50% |",
        "| `worker_peak_mb` | 900 | <= 1500 | yes |",
        "| `pairs_per_s` | 12,346 |  |  |",
    ]


def test_the_page_shows_the_result_that_it_names() -> None:
    from tests.benchmarks.page import MARKED, PAGE, rendered

    text = PAGE.read_text()
    marked = MARKED.search(text)
    assert marked is not None, "docs/speed.md has its marks"
    assert rendered(text, ROOT / marked["result"]) == text, (
        f"write it anew: python -m tests.benchmarks.bench_ingest --render {marked['result']}"
    )
