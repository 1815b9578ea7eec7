"""How near the ingest runs to what the codecs can do, and how far it is ahead of the loop that peers run.

    python -m tests.benchmarks.codec [--work DIR] [--out FILE.json] [--quick]

`codec_ratio` is the rate of the whole ingest with one worker on one core (`pipeline_rate`: reading, judging, tiling,
sentences, counts, writing and staging; start-up left out) over that of the bare kernel (`kernel`) on one core: once
where the spots' patches cover a quarter of the slide (`_quarter`: their default width) and once where they cover it
whole (`_full`). The plain figure is the lower one. `loop_speedup` is the same rate over that of the loop that peers run
(`peer_loop`), likewise. `codec_ratio_without_ray` is the same reading, judging and writing by the same functions,
called after each other in one process: what lies between it and `codec_ratio` is Ray's processes, which share the core.

Real sections are compared by `real_sections`.

`share_decode`, `_resize`, `_encode` and `_write` are the kernel's. The rest is copying pixels from tiles to windows.

A machine's pace changes within minutes. So the kernel runs before and after each of the others, on half the spots, and
each is compared with the mean of the two; the figure is the median over the rounds. All take 20 s or more together.
"""

from __future__ import annotations

import shutil
import statistics
import time
from pathlib import Path

import numpy as np
from tests.benchmarks.alone import Figures, main, median_ratio
from tests.benchmarks.big_slide import COVERAGE, FULL, QUICK, UM_PER_PX, BigSlide, big_slide
from tests.benchmarks.kernel import STEPS, TiledJpeg
from tests.benchmarks.one_core import Tally, alone, kernel_on, loop_on
from tests.benchmarks.pipeline_rate import pipeline_rate

__all__ = ["measure"]

SPOT_UM, NICHE_UM = 55.0, 255.0
LONG_S = 20.0  # of work a measurement
ROUNDS = 2
SLIDES = 2  # copies of the slide in one ingest
LOOP_SPOTS = 600  # of the slide, from its middle, for the loop of peers


def measure(work: Path, quick: bool = False) -> Figures:
    """All figures; keys as in the module's docstring."""
    slide = big_slide(work, QUICK if quick else FULL)
    coverages = {"quarter": COVERAGE["quarter"]} if quick else COVERAGE
    figures: Figures = {}
    totals = dict.fromkeys((*STEPS, "all"), 0.0)
    for name, spot_um in coverages.items():
        figures |= {f"{key}_{name}": value for key, value in _on_slide(work, slide, spot_um, totals, quick).items()}
    figures |= {f"share_{step}": totals[step] / totals["all"] for step in STEPS}
    for key in ("codec_ratio", "codec_ratio_without_ray", "loop_speedup"):
        figures[key] = min(figures[f"{key}_{name}"] for name in coverages)
    return figures


def _on_slide(
    work: Path, slide: BigSlide, spot_um: float | None, totals: dict[str, float], quick: bool
) -> dict[str, float]:
    """Rates on the generated slide at one coverage."""
    sides = round((spot_um or SPOT_UM) / UM_PER_PX), round(NICHE_UM / UM_PER_PX)
    middle = len(slide.xy_px) // 2
    some = slide.xy_px[max(middle - LOOP_SPOTS // 2, 0) : middle + LOOP_SPOTS // 2]
    half = slide.xy_px[middle // 2 : middle // 2 + max(middle, 1)]
    copies = 1 if quick else SLIDES
    least_s = 0.0 if quick else LONG_S / ROUNDS

    def kernel() -> float:
        return alone(kernel_on, least_s, slide.image, half, sides, work, TiledJpeg, into=kernels).rate

    def ingest() -> float:
        return pipeline_rate(work, [slide.folder] * copies, workers=1, spot_um=spot_um).pairs_per_s

    def without_ray() -> float:
        return alone(_without_ray, least_s, slide.folder, slide.xy_px, spot_um, work).rate

    def loop() -> float:
        return alone(loop_on, least_s, slide.image, some, sides, work).rate

    kernels = Tally()
    ways = {"ingest": ingest, "without_ray": without_ray, "loop": loop}
    rates: dict[str, list[float]] = {name: [] for name in ways}
    ratios: dict[str, list[float]] = {name: [] for name in ways}
    before = kernel()
    for _ in range(1 if quick else ROUNDS):
        for name, way in ways.items():
            rates[name].append(way())
            after = kernel()
            ratios[name].append(2 * rates[name][-1] / (before + after))
            before = after
    for step in STEPS:
        totals[step] += kernels.steps[step]
    totals["all"] += kernels.seconds
    return {
        "codec_ratio": statistics.median(ratios["ingest"]),
        "codec_ratio_without_ray": statistics.median(ratios["without_ray"]),
        "loop_speedup": median_ratio(ratios["ingest"], ratios["loop"]),
        "pairs_per_s": statistics.median(rates["ingest"]),
        "kernel_pairs_per_s": kernels.rate,
        "loop_pairs_per_s": statistics.median(rates["loop"]),
    }


def _without_ray(
    folder: Path, xy_px: np.ndarray, spot_um: float | None, work: Path
) -> tuple[int, float, dict[str, float]]:
    """The ingest's own functions in this process, on as many spots of the section as there are places."""
    from histolake.ingestion import ingest_settings
    from histolake.ingestion.discover import find_sections
    from histolake.ingestion.genes import resolve
    from histolake.ingestion.handover import PackedSlide
    from histolake.ingestion.worker import SlideWorker, Work, look_and_keep
    from histolake.platform.lake import Lake
    from histolake.platform.settings import load_settings

    settings = ingest_settings(load_settings({"patches.spot_um": spot_um} if spot_um else {}))
    (candidate,) = find_sections([str(folder)], "bench")
    shutil.rmtree(work / "plain-lake", ignore_errors=True)
    lake = Lake.open(work / "plain-lake", create=True)
    began = time.perf_counter()
    attempt = lake.begin(candidate.slide_id, source_digest="a", settings_digest="b", source=candidate.uri)
    look, slide = look_and_keep(candidate, lake.root, settings, attempt.ingest_id)
    resolve(lake, slide.symbols, slide.ensembl_ids, species=look.species, allocate=True)
    run = Work(candidate=candidate, writer=attempt.pairs, start=0, stop=min(len(xy_px), look.n_kept))
    written = SlideWorker(lake.root, settings).write(run, lambda: PackedSlide.of(slide))
    assert written.fragment is not None, written.problem
    return written.spots, time.perf_counter() - began, {}


if __name__ == "__main__":
    assert __doc__ is not None
    main(measure, __doc__.splitlines()[0])
