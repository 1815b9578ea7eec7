"""All benchmarks of a part, one after the other: `make bench-ingest`, `make bench-train`.

    python -m tests.benchmarks.suite ingest|train [--only NAME]... [--quick] [--work DIR] [--out FILE.json]
    python -m tests.benchmarks.suite --render tests/benchmarks/results/FILE.json

Each runs in a process of its own, so that none inherits the caches, the threads or the memory of another. The figures
are merged into one flat JSON object (`bench-output/ingest.json`, `bench-output/train.json`) with the machine, the time
and, for each benchmark, the minutes it took and the commit it ran at. `--only` keeps the other figures of the file as
they are. `--render` measures nothing: it writes the table of a result into docs/speed.md, to the part that its name
begins with.

The machine should do nothing else meanwhile.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.benchmarks import page
from tests.benchmarks.goals import GOALS
from tests.benchmarks.machine import commit, description

__all__ = ["SUITES", "main"]

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SUITES: Mapping[str, Sequence[str]] = {
    "ingest": ("codec", "real_sections", "workers", "append_cost", "driver_memory", "reading", "ann"),
    "train": ("loader", "train_start", "tokenizers"),
}
FOLDERS = {"codec": "slides", "real_sections": "slides", "workers": "slides"}  # they read the same generated slides
LONGEST_S = 25 * 60  # after which a benchmark is taken for stuck
QUICK_S = 5 * 60


def present(suite: str) -> list[str]:
    """The benchmarks of a suite that are there."""
    return [name for name in SUITES[suite] if (HERE / f"{name}.py").exists()]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked for; 1 where a benchmark failed."""
    given = _asked(arguments)
    if given.render is not None:
        page.write(given.render)
        return 0
    names, out = given.only or present(given.suite), given.out or ROOT / "bench-output" / f"{given.suite}.json"
    figures: dict[str, Any] = _figures_of(out) if given.only else {}
    failed = []
    with tempfile.TemporaryDirectory(prefix="histolake-bench-") as scratch:
        for name in names:
            found = run(name, (given.work or Path(scratch)) / FOLDERS.get(name, name), quick=given.quick)
            if found is None:
                failed.append(name)
                continue
            figures |= found
            _write(figures, out, quick=given.quick)
    print(page.table(figures, plain=True))
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _asked(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line, read; ends the program where it cannot be meant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", nargs="?", choices=sorted(SUITES), help="the part whose benchmarks are run")
    parser.add_argument("--only", action="append", metavar="NAME", help="one benchmark; may be repeated")
    parser.add_argument("--quick", action="store_true", help="under a minute each; the figures mean little")
    parser.add_argument("--work", type=Path, help="folder for what is written on the way (a temporary one by default)")
    parser.add_argument("--out", type=Path, help="the file of figures (bench-output/SUITE.json)")
    parser.add_argument("--render", type=Path, metavar="FILE", help="write the table of a result into docs/speed.md")
    given = parser.parse_args(arguments)
    if given.render is not None:
        return given
    if given.suite is None:
        parser.error(f"name a suite ({' or '.join(sorted(SUITES))}), or a result with --render")
    if unknown := sorted(set(given.only or ()) - set(present(given.suite))):
        parser.error(f"--only {unknown[0]}: the suite has {', '.join(present(given.suite))}")
    return given


def run(name: str, work: Path, *, quick: bool = False) -> dict[str, Any] | None:
    """The figures of one benchmark, with the minutes it took and the commit; None where it failed, which is told."""
    print(f"{name} ...", file=sys.stderr, flush=True)
    work.mkdir(parents=True, exist_ok=True)
    out = work / f"{name}.json"
    out.unlink(missing_ok=True)
    command = [sys.executable, "-m", f"tests.benchmarks.{name}", "--work", str(work), "--out", str(out)]
    began = time.monotonic()
    try:
        done = subprocess.run(
            [*command, *(["--quick"] if quick else [])],
            cwd=ROOT,
            stdout=sys.stderr,
            timeout=QUICK_S if quick else LONGEST_S,
        )
    except subprocess.TimeoutExpired:
        print(f"{name} did not end in time", file=sys.stderr)
        return None
    if done.returncode != 0 or not out.exists():
        print(f"{name} failed with exit code {done.returncode}", file=sys.stderr)
        return None
    figures: dict[str, float] = json.loads(out.read_text())
    wrong = {key: value for key, value in figures.items() if not _is_figure(value)}
    if wrong:
        print(f"{name} told what is no figure: {wrong}", file=sys.stderr)
        return None
    return figures | {f"minutes_{name}": round((time.monotonic() - began) / 60, 2), f"commit_{name}": commit()}


def _is_figure(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _figures_of(out: Path) -> dict[str, Any]:
    return json.loads(out.read_text()) if out.exists() else {}


def _write(figures: dict[str, Any], out: Path, *, quick: bool) -> None:
    minutes = sum(value for key, value in figures.items() if key.startswith("minutes_"))
    about = {
        "machine": description(),
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "quick": quick,
        "minutes": round(minutes, 1),
    }
    goals = {f"{key}_goal_met": GOALS[key].is_met(figures[key]) for key in GOALS if key in figures}
    out.parent.mkdir(parents=True, exist_ok=True)
    kept = {key: value for key, value in figures.items() if key not in about and not key.endswith("_goal_met")}
    out.write_text(json.dumps({**about, **kept, **goals}, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
