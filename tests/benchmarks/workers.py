"""What a second worker brings, and how much memory a worker takes.

    python -m tests.benchmarks.workers [--work DIR] [--out FILE.json] [--quick]

`two_worker_gain` is the rate of the ingest with two workers over that with one (`pipeline_rate`), over the same gain of
the bare kernel (`kernel`) from one process to two that share the spots. One core is allowed to one worker or process,
two to two, so that what cores share (caches, memory, the clock of a busy processor) slows both alike, and what the
driver and Ray's own processes take counts against the ingest. The worse of both coverages is the plain figure. A
machine's pace changes within minutes: the kernel runs before and after each ingest, and is taken as the mean of both.

`worker_peak_mb` is the memory of the busiest worker, its own pages (USS), over the slide at full coverage and over one
of three times the spots and half again as wide (`_large`), in runs of their own. `object_store_mb`, where judged
slides lie between workers, is apart: it is bounded by the setting `cluster.object_store_mb`.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from tests.benchmarks.alone import Figures, main
from tests.benchmarks.big_slide import COVERAGE, FULL, QUICK, UM_PER_PX, BigSlide, Shape, big_slide
from tests.benchmarks.kernel import TiledJpeg, run_kernel
from tests.benchmarks.pipeline_rate import pipeline_rate

__all__ = ["measure"]

LARGE = Shape(side_px=48_000, spots=15_000)
SPOT_UM, NICHE_UM = 55.0, 255.0
MAX_PX, JPEG_QUALITY = 224, 90
COPIES = 2  # of the slide in one ingest, so that it takes long enough
WARM_SPOTS = 30


def measure(work: Path, quick: bool = False) -> Figures:
    """All figures; keys as in the module's docstring."""
    slide = big_slide(work, QUICK if quick else FULL)
    coverages = {"quarter": COVERAGE["quarter"]} if quick else COVERAGE
    figures: Figures = {}
    for name, spot_um in coverages.items():
        found = _gain(work, slide, spot_um, copies=1 if quick else COPIES)
        figures |= {f"{key}_{name}": value for key, value in found.items()}
    figures["two_worker_gain"] = min(figures[f"two_worker_gain_{name}"] for name in coverages)
    looked_at = {"quarter": slide} if quick else {"full": slide, "large": big_slide(work, LARGE)}
    peaks = {
        name: pipeline_rate(work, [of.folder], workers=2, spot_um=coverages.get(name, COVERAGE["full"]), memory=True)
        for name, of in looked_at.items()
    }
    for name, rate in peaks.items():
        figures[f"worker_peak_mb_{name}"] = rate.worker_peak_mb
        figures[f"object_store_mb_{name}"] = rate.object_store_mb
    for key in ("worker_peak_mb", "object_store_mb"):
        figures[key] = max(figures[f"{key}_{name}"] for name in peaks)
    return figures


def _gain(work: Path, slide: BigSlide, spot_um: float | None, *, copies: int) -> Figures:
    """Rates of the ingest with one worker and with two, each between two runs of the kernel on as many cores."""
    sides = tuple(round(um / UM_PER_PX) for um in (spot_um or SPOT_UM, NICHE_UM))
    cores = min(2, len(os.sched_getaffinity(0)))

    def beside_kernel(workers: int) -> tuple[float, float]:
        before = kernel_rate(slide, sides, work, processes=workers)
        rate = pipeline_rate(work, [slide.folder] * copies, workers=workers, spot_um=spot_um)
        return rate.pairs_per_s, (before + kernel_rate(slide, sides, work, processes=workers)) / 2

    one, kernel_one = beside_kernel(1)
    two, kernel_two = beside_kernel(cores)
    gain, kernel_gain = two / one, kernel_two / kernel_one
    return {
        "two_worker_gain": gain / kernel_gain,
        "worker_gain": gain,
        "kernel_gain": kernel_gain,
        "pairs_per_s_one_worker": one,
        "pairs_per_s_two_workers": two,
        "kernel_pairs_per_s": kernel_one,
    }


def kernel_rate(slide: BigSlide, sides: tuple[int, ...], work: Path, *, processes: int) -> float:
    """Pairs a second of the bare kernel in some processes together, each with its share of the spots and a core."""
    context = multiprocessing.get_context("spawn")
    ready, told = context.Barrier(processes), context.Queue()
    parts = list(np.array_split(slide.xy_px, processes))
    given = [(slide.image, part, sides, work / f"kernel-{n}", n, ready, told) for n, part in enumerate(parts)]
    started = [context.Process(target=_kernel_part, args=args) for args in given]
    for process in started:
        process.start()
    times = [told.get(timeout=600) for _ in started]
    for process in started:
        process.join()
    began, ended = min(a for a, _ in times), max(b for _, b in times)
    return len(slide.xy_px) / (ended - began)


def _kernel_part(
    image: Path, xy_px: np.ndarray, sides: tuple[int, ...], out: Path, number: int, ready: Any, told: Any
) -> None:
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[number]})
    how = {"max_px": MAX_PX, "quality": JPEG_QUALITY, "out": out}
    run_kernel(TiledJpeg(image), xy_px[:WARM_SPOTS], sides, **how)  # type: ignore[arg-type]  # three named ones
    source = TiledJpeg(image)
    ready.wait()
    began = time.monotonic()
    run_kernel(source, xy_px, sides, **how)  # type: ignore[arg-type]  # as above
    told.put((began, time.monotonic()))
    out.unlink()


if __name__ == "__main__":
    main(measure, "What a second worker brings, and how much memory a worker takes.")
