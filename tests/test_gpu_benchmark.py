"""The benchmark of training steps runs, here on a CPU at tiny sizes, and gives its figures; what is committed of it is
either measured on a named device or says that it was not."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = "tests/benchmarks/gpu_train.py"
NAMED = ("mfu", "step_speedup_vs_open_clip", "step_speedup_vs_open_clip_no_decoder", "pairs_per_s", "peak_gb")


def test_it_runs_and_names_its_figures(tmp_path: Path) -> None:
    out = tmp_path / "gpu_train.json"
    command = [sys.executable, SCRIPT, "--device", "cpu", "--quick", "--out", str(out), "--commit", "abc"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    figures = json.loads(out.read_text())
    assert set(NAMED) <= set(figures) and not any(isinstance(value, (dict, list)) for value in figures.values())
    assert figures["correct"] is True and figures["error_gradients_bf16"] < 0.1
    assert (figures["out_of_memory"], figures["left_out"], figures["commit"]) == ("none", "none", "abc")
    assert figures["mfu"] is None and figures["peak_gb"] is None, "of a CPU neither is known"
    for name in ("pairs_per_s", "step_speedup_vs_open_clip", "step_speedup_vs_open_clip_no_decoder"):
        settings = [value for key, value in figures.items() if re.fullmatch(rf"{name}_(vit_l_14_)?\d+", key)]
        assert figures[name] == min(settings) > 0 and math.isfinite(max(settings)), name
    for kind in ("st_align", "cached", "recomputed", "flash", "whole"):
        assert figures[f"{kind}_pairs_per_s"] > 0, kind
    assert str(tmp_path) not in out.read_text() and str(ROOT) not in out.read_text()


def test_without_a_gpu_it_says_so_and_writes_nothing(tmp_path: Path) -> None:
    command = [sys.executable, SCRIPT, "--out", str(tmp_path / "none.json")]
    hidden = {"CUDA_VISIBLE_DEVICES": "", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=hidden)
    assert done.returncode == 1 and "no GPU that torch can use" in done.stdout, done.stderr
    assert not (tmp_path / "none.json").exists()


def test_committed_results_are_measured_or_say_that_they_are_not() -> None:
    results = sorted((ROOT / "tests/benchmarks/results").glob("gpu-train-*.json"))
    assert results
    for path in results:
        told = json.loads(path.read_text())
        assert told["command"].startswith(f"python {SCRIPT}") and told["when"][:10] == path.stem[-10:]
        if told["result"] == "not run":
            assert told["reason"] and all(told[name] == "not run" for name in NAMED), path.name
        else:
            assert told["device"] and told["commit"] and told["correct"] is True and told["quick"] is False
            assert all(isinstance(told[name], float) for name in NAMED), path.name
