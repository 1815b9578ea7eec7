"""Byte pairs against one token a gene: the same model, pairs, steps and seeds, on real sections.

    HISTOLAKE_SAMPLE_DIR=~/sections python -m tests.benchmarks.tokenizers [--work DIR] [--out FILE.json] [--quick]

`coca-tiny` and `coca-tiny-genes` differ in the tokenizer, its vocabulary and the tokens of a sentence (76, 52), and in
nothing else. Each trains by `histolake train` on C2, C3 and C4 of HER2ST, and is judged on C5 (the same patient) and A1
(another), for each of some seeds. Without the sections there are no figures.

- `gene_over_bpe_recall_at_5pct`, `_at_10pct`: held-out recall with one token a gene over that with byte pairs, of the
  same seed; the median. Above 1, one token a gene wins. `recall_at_10pct_bpe` and so on: the means over seeds;
  `_least`, `_most`: the extremes.
- `genes_surviving_bpe`, `_gene`: genes of a sentence's 50 that reach the model. `train_seconds_bpe`, `_gene`: of a
  whole run.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.benchmarks.alone import Figures, main, median_ratio

__all__ = ["measure"]

RECIPES = {"bpe": "coca-tiny", "gene": "coca-tiny-genes"}
SEEDS = 3
SIDES = ["--train-slides", "her2st/C2,her2st/C3,her2st/C4", "--validation-slides", "her2st/C5,her2st/A1"]
SIDES += ["--cuts-units"]
JUDGED = ("recall_at_5pct", "recall_at_10pct")


def measure(work: Path, quick: bool = False) -> Figures:
    """All figures; keys as in the module's docstring."""
    folder = os.environ.get("HISTOLAKE_SAMPLE_DIR")
    if not folder:
        print("no real sections: HISTOLAKE_SAMPLE_DIR names no folder", file=sys.stderr)
        return {}
    lake = str(work / "lake")
    _histolake("ingest", str(Path(folder) / "her2st"), "--lake", lake, "--cohort", "her2st", accepted=(0, 3))
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in RECIPES}
    for seed in range(1 if quick else SEEDS):
        for name, recipe in RECIPES.items():
            words = ["train", recipe, "--lake", lake, *SIDES, "--set", f"seed={seed}", "--json"]
            words += ["--tracking", f"sqlite:///{work}/runs.db", *(["--set", "steps=20"] if quick else [])]
            runs[name] += json.loads(_histolake(*words))
    figures: Figures = {}
    for key in JUDGED:
        found = {name: [row[f"validation_{key}"] for row in rows] for name, rows in runs.items()}
        figures[f"gene_over_bpe_{key}"] = median_ratio(found["gene"], found["bpe"])
        for name, values in found.items():
            figures[f"{key}_{name}"] = statistics.mean(values)
            figures[f"{key}_{name}_least"], figures[f"{key}_{name}_most"] = min(values), max(values)
    for name, rows in runs.items():
        figures[f"genes_surviving_{name}"] = rows[0]["genes_surviving_tokenizer"]
        figures[f"train_seconds_{name}"] = statistics.median(row["seconds"] for row in rows)
    return figures


def _histolake(*words: str, accepted: tuple[int, ...] = (0,)) -> str:
    """What a command prints."""
    done = subprocess.run([sys.executable, "-m", "histolake.platform", *words], capture_output=True, text=True)
    if done.returncode not in accepted:
        raise RuntimeError(f"histolake {words[0]} ended with {done.returncode}: {done.stderr[-500:]}")
    return done.stdout


if __name__ == "__main__":
    main(measure, "Byte pairs against one token a gene, on real sections.")
