"""Steps of training on a GPU: correctness first, then pairs a second, MFU and peak memory, beside open_clip's own step.

    python tests/benchmarks/gpu_train.py                         # under 9 minutes on an H200
    python tests/benchmarks/gpu_train.py --device cpu --quick    # the same code at tiny sizes, to see that it runs

writes bench-output/gpu_train.json. Needs torch, open_clip and timm; of histolake the array code alone, from a checkout.
What is measured:

- CoCa ViT-L/14 (OmiCLIP, contrastive) in bf16, compiled layer by layer, at each batch: the plain keys are the worst of
  them. With activations computed again (`recomputed_*`), by gradient caching (`cached_*`), ST-Align (`st_align_*`), and
  with torch's own order of attention kernels or compiled whole (`flash_*`, `whole_*`).
- open_clip's step at the batches of COMPARED, in turn with ours, three rounds: bf16, the whole model compiled, with
  its decoder (which it runs at caption weight 0 too) and without. Both sides have the same optimiser and clipping;
  theirs is handed pixels in single precision, ours makes them of bytes.

The time between the ends of two steps is taken by events of the device; a figure is the median. A batch that does not
fit is named in `out_of_memory`, what there was no time for in `left_out`. The file is written after each measurement.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "platform"), str(ROOT / "training"), str(Path(__file__).parent)]

import torch  # noqa: E402

from histolake.training.torchvision_shim import import_torchvision  # noqa: E402

import_torchvision()

from gpu_check import correctness  # noqa: E402
from gpu_steps import Step, our_coca, our_st_align, ours, theirs  # noqa: E402
from machine import commit  # noqa: E402

from histolake.training.flops import forward_flops, mfu, peak_flops  # noqa: E402
from histolake.training.models.coca_presets import COCA_PRESETS  # noqa: E402
from histolake.training.precision import compute_in  # noqa: E402

BATCHES, COMPARED = (64, 128, 256, 512), (256, 64)
RECOMPUTED, CACHED, CHUNK = (256, 512), 2048, 256
ST_ALIGN = (64, 256)
ROUNDS = 3
# A guess at what a comparison and another measurement take, compilation included, s: what does not fit is left out.
COMPARISON_S, WHOLE_S, LAYERS_S = 200.0, 100.0, 30.0

TINY_ST_ALIGN = {
    "gene_ids": tuple(range(40)),
    "image_encoder": "timm:vit_tiny_patch16_224",
    "embed_dim": 32,
    "spot_depth": 10,
    "spot_width": 8,
    "niche_width": 32,
    "niche_layers": 2,
    "niche_heads": 2,
    "niche_patch_genes": 10,
    "vector_width": 16,
}
TINY = {**COCA_PRESETS["tiny"], "image_px": 28, "image_width": 32, "image_layers": 2, "image_head_width": 16}
TINY |= {"embed_dim": 32, "text_width": 32, "text_heads": 2, "text_layers": 2, "context": 12, "vocab_size": 100}


class Bench:
    """What is measured, where, and until when."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.device = torch.device(args.device)
        self.on_gpu = self.device.type == "cuda"
        self.quick = args.quick
        self.out = Path(args.out)
        self.stop = time.perf_counter() + 60 * args.minutes
        self.backend = "inductor" if self.on_gpu else "aot_eager"
        self.coca = TINY if self.quick else COCA_PRESETS["vit-l-14"]
        self.words = self.coca["vocab_size"] - 2
        name = torch.cuda.get_device_name(self.device) if self.on_gpu else platform.machine()
        self.peak = peak_flops(name)
        libraries = ", ".join(f"{each} {version(each)}" for each in ("torch", "open_clip_torch", "timm"))
        cuda = f", CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}" if self.on_gpu else ""
        self.figures: dict[str, Any] = {
            "result": "measured",
            "device": name,
            "command": f"python tests/benchmarks/gpu_train.py {' '.join(args.given)}".strip(),
            "versions": f"Python {platform.python_version()}, {libraries}{cuda}",
            "commit": args.commit or commit(),
            "when": datetime.now(UTC).isoformat(timespec="seconds"),
            "quick": self.quick,
            "peak_tflops": self.peak and self.peak / 1e12,
        }
        self.lacking: dict[str, list[str]] = {"out_of_memory": [], "left_out": []}

    def note(self, **figures: Any) -> None:
        """Keep figures, tell them, and write all that there are."""
        self.figures |= figures
        for name, value in figures.items():
            print(f"{name:<52} {value if not isinstance(value, float) else f'{value:.5g}'}", flush=True)
        lacking = {name: ", ".join(them) or "none" for name, them in self.lacking.items()}
        self.out.parent.mkdir(parents=True, exist_ok=True)
        self.out.write_text(json.dumps(self.figures | lacking, indent=1) + "\n")

    def has_time(self, name: str, seconds: float) -> bool:
        """Whether so much time is left; if not, that is noted."""
        if self.stop - time.perf_counter() > (0 if self.quick else seconds):
            return True
        self.lacking["left_out"].append(name)
        return False

    def fits(self, name: str, measure: Callable[[], None]) -> None:
        """Measure; where memory does not suffice, note that. What was compiled and held is let go."""
        try:
            measure()
        except torch.OutOfMemoryError:
            self.lacking["out_of_memory"].append(name)
        self.let_go()
        self.note()

    def let_go(self) -> None:
        gc.collect()
        torch._dynamo.reset()
        if self.on_gpu:
            torch.cuda.empty_cache()

    def held(self) -> int:
        return torch.cuda.memory_allocated(self.device) if self.on_gpu else 0

    def warm(self, step: Step) -> float:
        """Compile, settle, and give the seconds of a step."""
        for _ in range(3):
            step()
        self.wait()
        began = time.perf_counter()
        step()
        self.wait()
        return time.perf_counter() - began

    def peak_gb(self, step: Step, before: int) -> float | None:
        """Memory of a step at its fullest, above what was held `before` it was built, GB."""
        if not self.on_gpu:
            return None
        torch.cuda.reset_peak_memory_stats(self.device)
        step()
        self.wait()
        return (torch.cuda.max_memory_allocated(self.device) - before) / 1e9

    def timed(self, step: Step, once: float, seconds: float) -> list[float]:
        """Seconds of each of several steps that follow each other."""
        count = 3 if self.quick else min(30, max(5, round(seconds / max(once, 1e-4))))
        if not self.on_gpu:
            told = [time.perf_counter()]
            for _ in range(count):
                step()
                told.append(time.perf_counter())
            return [after - before for before, after in pairwise(told)]
        ends = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
        ends[0].record()
        for end in ends[1:]:
            step()
            end.record()
        self.wait()
        return [before.elapsed_time(after) / 1e3 for before, after in pairwise(ends)]

    def wait(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize(self.device)

    # The measurements.

    def alone(self, prefix: str, model: str, build: Callable[[], torch.nn.Module], rows: int, **how: Any) -> None:
        """A step of ours at a batch: `<prefix>mfu_<model>_<rows>` and so on."""
        name = f"{prefix}{model}_{rows}"
        if not self.has_time(name, WHOLE_S if how.get("how") == "whole" else LAYERS_S):
            return

        def measure() -> None:
            before = self.held()
            made = build()
            cost = forward_flops(made)
            step = ours(made, rows, self.device, words=self.words, backend=self.backend, **DEFAULTS | how)
            once = self.warm(step)
            peak = self.peak_gb(step, before)
            seconds = statistics.median(self.timed(step, once, 3.0))
            self.note(
                **self.told(prefix, f"{model}_{rows}", rows / seconds, mfu(rows / seconds, cost, self.peak), peak)
            )

        self.fits(name, measure)

    def told(self, prefix: str, setting: str, rate: float, use: float | None, peak: float | None) -> dict[str, Any]:
        """The figures of a setting, and the plain ones: the worst of its kind so far."""
        told: dict[str, Any] = {}
        for name, value, worst in (("pairs_per_s", rate, min), ("mfu", use, min), ("peak_gb", peak, max)):
            key = f"{prefix}{name}"
            same = [each for known, each in self.figures.items() if known.startswith(f"{key}_") and each is not None]
            told |= {f"{key}_{setting}": value, key: worst([*same, value]) if value is not None else None}
        return told

    def compare(self, rows: int) -> None:
        """Ours and open_clip's, in turn."""
        if not self.has_time(f"open_clip_{rows}", COMPARISON_S):
            return
        config = self.coca
        build: Mapping[str, Callable[[], Step]] = {
            "ours": lambda: ours(
                our_coca(config, self.device), rows, self.device, words=self.words, backend=self.backend, **DEFAULTS
            ),
            "open_clip": lambda: theirs(
                config, rows, self.device, words=self.words, backend=self.backend, decoder=True
            ),
            "open_clip_no_decoder": lambda: theirs(
                config, rows, self.device, words=self.words, backend=self.backend, decoder=False
            ),
        }

        def measure() -> None:
            steps, once, peaks = {}, {}, {}
            for name, make in build.items():
                before = self.held()
                steps[name] = make()
                if self.on_gpu:
                    torch.cuda.empty_cache()
                once[name] = self.warm(steps[name])
                peaks[name] = self.peak_gb(steps[name], before)
            rounds: dict[str, list[float]] = {name: [] for name in build}
            for _ in range(ROUNDS):
                for name, step in steps.items():
                    rounds[name].append(statistics.median(self.timed(step, once[name], 2.0)))
            seconds = {name: statistics.median(taken) for name, taken in rounds.items()}
            told: dict[str, Any] = {"spread_ours": max(rounds["ours"]) / min(rounds["ours"]) - 1}
            for name in ("open_clip", "open_clip_no_decoder"):
                key, ratio = f"step_speedup_vs_{name}", seconds[name] / seconds["ours"]
                same = [self.figures[each] for each in self.figures if re.fullmatch(rf"{key}_\d+", each)]
                told |= {f"{key}_{rows}": ratio, key: min([*same, ratio])}
                told |= {f"{name}_pairs_per_s_{rows}": rows / seconds[name], f"{name}_peak_gb_{rows}": peaks[name]}
            told |= {f"beside_pairs_per_s_{rows}": rows / seconds["ours"]}
            self.note(**told)

        self.fits(f"open_clip_{rows}", measure)


DEFAULTS: dict[str, Any] = {"how": "layers", "first": "best"}


def run(bench: Bench) -> bool:
    """All of it in the order of its weight; False where what is computed is wrong."""
    bench.note(**correctness(bench.device, bench.backend))
    if not bench.figures["correct"]:
        return False
    compute_in("bf16", bench.device)

    def of(batches: tuple[int, ...]) -> list[int]:
        return [rows // 32 for rows in batches[:1]] if bench.quick else list(batches)

    def coca(**changed: Any) -> Callable[[], torch.nn.Module]:
        return lambda: our_coca({**bench.coca, **changed}, bench.device)

    def st_align() -> torch.nn.Module:
        return our_st_align(TINY_ST_ALIGN if bench.quick else {}, bench.device)

    main, *others = of(COMPARED)
    bench.compare(main)
    for rows in of(BATCHES):
        bench.alone("", "vit_l_14", coca(), rows)
    for rows in of(ST_ALIGN):
        bench.alone("st_align_", "uni", st_align, rows)
    (cached,), (chunk,) = of((CACHED,)), of((CHUNK,))
    bench.alone("cached_", "vit_l_14", coca(), cached, chunk=chunk)
    for rows in of(RECOMPUTED):
        bench.alone("recomputed_", "vit_l_14", coca(grad_checkpointing=True), rows)
    bench.alone("flash_", "vit_l_14", coca(), main, first="flash")
    for rows in others:
        bench.compare(rows)
    bench.alone("whole_", "vit_l_14", coca(), main, how="whole")
    return True


def main() -> int:
    """The command line."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--device", default="cuda", help="cuda | cpu")
    options.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    options.add_argument("--out", default="bench-output/gpu_train.json", help="file to write")
    options.add_argument("--minutes", type=float, default=8.5, help="what would end later is left out")
    options.add_argument("--commit", default="", help="of the code, where there is no git")
    args = options.parse_args()
    args.given = [word for word in sys.argv[1:] if word in ("--quick", "--device", "cuda", "cpu")]
    if args.device == "cuda" and not torch.cuda.is_available():
        print("There is no GPU that torch can use; nothing was measured (--device cpu --quick runs the code).")
        return 1
    began = time.perf_counter()
    bench = Bench(args)
    correct = run(bench)
    bench.note(minutes=(time.perf_counter() - began) / 60)
    if not correct:
        print("What the device computes is wrong (see error_*); nothing was timed.")
    return 0 if correct else 1


if __name__ == "__main__":
    sys.exit(main())
