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


def run(suite: str, benchmark: str, folder: Path) -> tuple[dict[str, object], str]:
    """What the harness writes and prints of one benchmark, in seconds."""
    out = folder / f"{suite}.json"
    command = [sys.executable, "-m", "tests.benchmarks.suite", suite, "--only", benchmark, "--quick", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(out.read_text())
    numbers = [value for value in found.values() if isinstance(value, (int, float))]
    assert set(found) - {"machine", "when", f"commit_{benchmark}"} <= {
        key for key, value in found.items() if isinstance(value, (int, float))
    }
    assert all(math.isfinite(value) for value in numbers), "figures are named, flat and finite"
    assert found["quick"] is True and float(str(found["minutes"])) > 0
    return found, done.stdout


def rates(figures: dict[str, object], prefix: str) -> list[float]:
    """Figures whose names begin so, but for those that say whether a goal is met."""
    named = {key: value for key, value in figures.items() if key.startswith(prefix)}
    return [value for value in named.values() if isinstance(value, (int, float)) and not isinstance(value, bool)]


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """Of reading."""
    found, printed = run("ingest", "reading", tmp_path_factory.mktemp("bench"))
    assert "random_vs_parquet" in printed and ">= 1" in printed
    return found


def test_reading_is_compared_and_the_worst_counts(figures: dict[str, object]) -> None:
    for way in ("random", "scan"):
        for other in ("parquet", "webdataset"):
            settings = rates(figures, f"{way}_vs_{other}_")
            assert figures[f"{way}_vs_{other}"] == min(settings) > 0, "the plain figure is the worst"


def test_loaders_are_compared_and_the_worst_counts(tmp_path: Path) -> None:
    found, printed = run("train", "loader", tmp_path)
    assert "loader_vs_decode" in printed and ">= 0.85" in printed
    for other in ("webdataset", "files"):
        settings = rates(found, f"loader_vs_{other}_")
        assert len(settings) == 2 and found[f"loader_vs_{other}"] == min(settings) > 0
    assert found["loader_vs_decode"] == found["loader_vs_decode_disk_1"], "tokens and turning have names of their own"
    for key in ("profile_pairs_per_s_1", "seconds_to_first_batch_late_1", "peak_mb"):
        assert float(str(found[key])) > 0


def test_a_suite_has_its_own_benchmarks() -> None:
    command = [sys.executable, "-m", "tests.benchmarks.suite"]
    for words, said in ((["train", "--only", "codec"], "--only codec: the suite has loader"), ([], "name a suite")):
        done = subprocess.run([*command, *words], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 2 and said in done.stderr


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


def test_the_page_shows_the_results_that_it_names() -> None:
    from tests.benchmarks.page import MARKED, PAGE, rendered, suite_of
    from tests.benchmarks.suite import SUITES

    text = PAGE.read_text()
    marked = [found["result"] for found in MARKED.finditer(text)]
    assert sorted(map(suite_of, marked)) == sorted(SUITES), "docs/speed.md has marks for each suite"
    for result in marked:
        if result in SUITES:  # without a result yet
            continue
        assert rendered(text, ROOT / result) == text, (
            f"write it anew: python -m tests.benchmarks.suite --render {result}"
        )


def test_a_result_goes_between_the_marks_of_its_suite(tmp_path: Path) -> None:
    from tests.benchmarks import page

    (result,) = (ROOT / "tests/benchmarks/results").glob("ingest-*.json")
    name = result.relative_to(ROOT).as_posix()
    ends = "<!-- end of figures -->"
    empty = f"a\n<!-- figures of ingest -->\nnone\n{ends}\nb\n<!-- figures of train -->\nnone\n{ends}\n"
    filled = page.rendered(empty, result)
    assert f"<!-- figures of {name} -->\nMeasured" in filled and "`two_worker_gain`" in filled
    assert filled.endswith(f"b\n<!-- figures of train -->\nnone\n{ends}\n")
    assert page.rendered(filled, result) == filled
    with pytest.raises(ValueError, match="no marks for results of 'ingest'"):
        page.rendered(f"<!-- figures of train -->\nnone\n{ends}\n", result)
