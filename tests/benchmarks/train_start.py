"""From the command to the first step, and what share of a step waits for pairs: the tiny recipes by `histolake train`.

    python -m tests.benchmarks.train_start [--work DIR] [--out FILE.json] [--quick]

A process is started as a user starts it, on a lake of generated pairs on this machine's disk, with two workers, which
share its cores with everything else. The plain figure is the worse of the recipes (`_coca`, `_st_align`).

- `start_to_first_step_s`: from starting the process to its line about the first step (it looks twice a second).
  `_before_workers`: of that, until Ray is started: imports, the lake, the choice of genes, trying the request out.
- `waiting_share`: of a step, until its batch is there; the median of steps after the first ten, of the first worker.
- `train_worker_peak_mb`: resident memory of that worker at its highest. `train_pairs_per_s`: of both workers.
"""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

from tests.benchmarks import many_pairs
from tests.benchmarks.alone import Figures, main

__all__ = ["measure"]

RECIPES = {"coca": "coca-tiny", "st_align": "st-align-tiny"}
WARM_UP = 10  # steps
EXPRESSED_BY_MANY = 4_000  # genes, so that there are some worth predicting
SIDES = ["--train-slides", "many/000,many/001", "--cuts-units"]


def measure(work: Path, quick: bool = False) -> Figures:
    """All figures; keys as in the module's docstring."""
    slides, spots, steps = (2, 300, 12) if quick else (2, 2_048, 40)
    many_pairs.write(work, slides=slides, spots=spots, genes=EXPRESSED_BY_MANY)
    figures: Figures = {}
    for name, recipe in list(RECIPES.items())[: 1 if quick else None]:
        figures |= {f"{key}_{name}": value for key, value in _trained(work, recipe, steps).items()}
    for key, worst in {
        "start_to_first_step_s": max,
        "waiting_share": max,
        "train_worker_peak_mb": max,
        "train_pairs_per_s": min,
    }.items():
        figures[key] = worst(value for setting, value in figures.items() if setting.removeprefix(f"{key}_") in RECIPES)
    return figures


def _trained(work: Path, recipe: str, steps: int) -> Figures:
    """Of one run."""
    tracking = f"sqlite:///{work}/{recipe}.db"
    command = [sys.executable, "-m", "histolake.platform", "train", recipe, "--lake", str(work / "lake"), *SIDES]
    command += ["--set", f"steps={steps}", "--set", "warmup_steps=2", "--tracking", tracking]
    began = time.monotonic()
    at: dict[str, float] = {}
    environment = os.environ | {"HISTOLAKE_CLUSTER__CPUS": "2"}
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environment
    ) as run:
        assert run.stderr is not None, "it is a pipe"
        lines = []
        for line in run.stderr:
            lines.append(line)
            if line.startswith("starting "):
                at.setdefault("workers", time.monotonic() - began)
            if re.match(r"step \d+/", line):
                at.setdefault("step", time.monotonic() - began)
    if run.returncode != 0:
        raise RuntimeError(f"{recipe} could not be trained: {''.join(lines[-5:])}")
    found = _of_steps(tracking)
    return {
        "start_to_first_step_s": at["step"],
        "start_to_first_step_s_before_workers": at["workers"],
        "waiting_share": statistics.median(found["waiting_share"][WARM_UP:]),
        "train_worker_peak_mb": 1000 * max(found["host_gb"]),
        "train_pairs_per_s": statistics.median(found["pairs_per_s"][WARM_UP:]),
    }


def _of_steps(tracking: str) -> dict[str, list[float]]:
    """What the run's steps were tracked with, in their order."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking)
    (experiment,) = [each for each in client.search_experiments() if each.name != "Default"]
    (run,) = client.search_runs([experiment.experiment_id])
    wanted = ("waiting_share", "host_gb", "pairs_per_s")
    return {
        name: [each.value for each in sorted(client.get_metric_history(run.info.run_id, name), key=lambda m: m.step)]
        for name in wanted
    }


if __name__ == "__main__":
    main(measure, "From the command to the first step of training, and the share of a step that waits for pairs.")
