"""The tables of figures, for a terminal and for docs/speed.md, which is written from results and never by hand.

The page has a pair of marks for each suite. A result goes between those of the suite that its name begins with
(`train-2026-12-01.json`); marks that name a suite and no file are of one whose first result is still to come.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.benchmarks.goals import GOALS

__all__ = ["PAGE", "rendered", "suite_of", "table", "write"]

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "speed.md"
ABOUT = ("machine", "when", "quick", "minutes")
OF_EACH = ("minutes_", "commit_")  # a benchmark
# <!-- figures of tests/benchmarks/results/SUITE-DATE.json --> ... <!-- end of figures -->
MARKED = re.compile(r"<!-- figures of (?P<result>\S+) -->\n.*?<!-- end of figures -->", re.DOTALL)


def table(figures: Mapping[str, Any], *, plain: bool = False) -> str:
    """Figures with a goal first, each with its settings below it, then the others; Markdown, or `plain` text."""
    rows = [["figure", "value", "goal", "met"]]
    left = [key for key in figures if key not in ABOUT and not key.startswith(OF_EACH)]
    left = [key for key in left if not key.endswith("_goal_met")]
    for key in [*(key for key in GOALS if key in left), *sorted(key for key in left if key not in GOALS)]:
        goal, value = GOALS.get(key), figures[key]
        told = ["", ""] if goal is None else [str(goal), _met(goal.missed_by(value))]
        rows.append([key if plain else f"`{key}`", f"{value:,.4g}" if abs(value) < 10_000 else f"{value:,.0f}", *told])
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    if plain:
        return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    rows.insert(1, ["---", "---:", "---", "---"])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _met(missed_by: float) -> str:
    return f"no, by {missed_by:.0%}" if missed_by else "yes"


def suite_of(result: str | Path) -> str:
    """Of which suite a file of results is, by its name."""
    return Path(result).stem.partition("-")[0]


def rendered(text: str, result: Path) -> str:
    """The page's text with the table of a result between the marks of its suite."""
    figures = json.loads(result.read_text())
    name = result.resolve().relative_to(ROOT).as_posix()
    about = f"Measured {figures['when'][:10]} at {_commits(figures)} in {figures['minutes']:g} minutes"
    about += f" on {figures['machine']}."
    if figures.get("quick"):
        about += " A run with `--quick`: these figures mean little."
    made = f"<!-- figures of {name} -->\n{about}\n\n{table(figures)}\n<!-- end of figures -->"
    suite = suite_of(name)
    if suite not in {suite_of(marked["result"]) for marked in MARKED.finditer(text)}:
        raise ValueError(f"{PAGE.name} has no marks for results of {suite!r}, between which the figures go")
    return MARKED.sub(lambda marked: made if suite_of(marked["result"]) == suite else marked[0], text)


def _commits(figures: Mapping[str, Any]) -> str:
    """The commit that all ran at, or each one's."""
    of_each = {key.removeprefix("commit_"): value for key, value in figures.items() if key.startswith("commit_")}
    if len(set(of_each.values())) == 1:
        return f"commit {next(iter(of_each.values()))}"
    at: dict[str, list[str]] = {}
    for name, value in of_each.items():
        at.setdefault(value, []).append(name)
    return "commits " + ", ".join(f"{value} ({', '.join(names)})" for value, names in at.items())


def write(result: Path) -> None:
    """Write a result's table into the page."""
    PAGE.write_text(rendered(PAGE.read_text(), result))
