"""One benchmark as a process of its own: `python -m tests.benchmarks.<name> --work DIR [--out FILE.json] [--quick]`.

A benchmark is a function `measure(work, quick) -> figures`, flat and named. What it writes on the way goes to `work`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

__all__ = ["Figures", "interleaved", "main", "rounded"]

Figures = dict[str, float]


def main(measure: Callable[..., Figures], what: str, arguments: Sequence[str] | None = None) -> Figures:
    """Read the command line, measure, and print or write the figures."""
    parser = argparse.ArgumentParser(description=what)
    parser.add_argument("--work", type=Path, help="folder for what is written on the way (a temporary one by default)")
    parser.add_argument("--out", type=Path, help="file for the figures (JSON); they are printed in any case")
    parser.add_argument(
        "--quick", action="store_true", help="under a minute, to see that it runs; the figures mean little"
    )
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="histolake-bench-") as scratch:
        work = given.work or Path(scratch)
        work.mkdir(parents=True, exist_ok=True)
        figures = rounded(measure(work, quick=given.quick))
    text = json.dumps(figures, indent=1)
    print(text)
    if given.out is not None:
        given.out.write_text(text + "\n")
    return figures


def rounded(figures: Mapping[str, float]) -> Figures:
    """Figures with four digits that count, which is more than any of them is good for."""
    return {name: float(f"{float(value):.4g}") for name, value in figures.items()}


def interleaved(ways: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Each way's answers over some rounds, one after the other in every round, every other round backwards, so that
    what else the machine does falls on all of them alike."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds):
        names = list(ways)[:: 1 if number % 2 == 0 else -1]
        for name in names:
            found[name].append(ways[name]())
    return found


def median_ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """The median of the ratios of measurements taken together."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def seconds(call: Callable[[], object]) -> float:
    """How long a call takes."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def rate(counts: Iterable[int]) -> float:
    """How many a second: goes through something that yields how many it has done, and adds them up."""
    began = time.perf_counter()
    done = sum(counts)
    return done / (time.perf_counter() - began)
