"""How near the ingest runs to what the codecs can do, and how far it is ahead of the loop that peers run.

    python -m tests.benchmarks.codec [--work DIR] [--out FILE.json] [--quick]

`codec_ratio` is the rate of the whole ingest with one worker on one core (`pipeline_rate`: reading, judging, tiling,
sentences, counts, writing and staging; start-up left out) over that of the bare kernel (`kernel`) on one core: once
where the spots' patches cover a quarter of the slide (`_quarter`: their default width) and once where they cover it
whole (`_full`). The plain figure is the lower one. `loop_speedup` is the same rate over that of the loop that peers run
(`peer_loop`), likewise. `codec_ratio_without_ray` is the same reading, judging and writing by the same functions,
called after each other in one process: what lies between it and `codec_ratio` is Ray's processes, which share the core.

`codec_ratio_real` and `loop_speedup_real` are of real sections, where HISTOLAKE_SAMPLE_DIR names a folder with them:
all that the ingest takes in from it, as it is ingested every day, against the same pictures cut by the kernel and by
the loop. Their images are small and in one piece, so that most of the time goes to what the kernel does not do at all:
reading counts from text and tables.

`share_decode`, `_resize`, `_encode` and `_write` are the kernel's. The rest is copying pixels from tiles to windows.

A machine's pace changes within minutes. So the kernel runs before and after each of the others, on half the spots, and
each is compared with the mean of the two; the figure is the median over the rounds. All take 20 s or more together.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tests.benchmarks.alone import Figures, main, median_ratio
from tests.benchmarks.big_slide import COVERAGE, FULL, QUICK, UM_PER_PX, BigSlide, big_slide
from tests.benchmarks.kernel import STEPS, Decoded, TiledJpeg, run_kernel
from tests.benchmarks.peer_loop import run_peer_loop
from tests.benchmarks.pipeline_rate import pipeline_rate

__all__ = ["measure"]

SPOT_UM, NICHE_UM = 55.0, 255.0
MAX_PX, QUALITY = 224, 90
LONG_S = 20.0  # of work a measurement
ROUNDS = 2
SLIDES = 2  # copies of the slide in one ingest
WARM_SPOTS = 20
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
    sections = [] if quick else real_sections()
    if sections:
        figures |= {f"{key}_real": value for key, value in _on_sections(work, sections).items()}
    return figures


@dataclass
class _Tally:
    """Pairs and seconds of one way to work, added up."""

    pairs: int = 0
    seconds: float = 0.0
    steps: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STEPS, 0.0))

    @property
    def rate(self) -> float:
        """Pairs a second."""
        return self.pairs / self.seconds

    def add(self, pairs: int, seconds: float, steps: dict[str, float] | None = None) -> None:
        """One measurement more."""
        self.pairs += pairs
        self.seconds += seconds
        for step, spent in (steps or {}).items():
            self.steps[step] += spent


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
        return _alone(_kernel_on_tiles, least_s, slide.image, half, sides, work, into=kernels).rate

    def ingest() -> float:
        return pipeline_rate(work, [slide.folder] * copies, workers=1, spot_um=spot_um).pairs_per_s

    def without_ray() -> float:
        return _alone(_without_ray, least_s, slide.folder, slide.xy_px, spot_um, work).rate

    def loop() -> float:
        return _alone(_loop_on, least_s, slide.image, some, sides, work).rate

    kernels = _Tally()
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


def _alone(what: Callable[..., Any], least_s: float, *given: Any, into: _Tally | None = None) -> _Tally:
    """Measure in a process of its own on one core, as often as takes long enough; once before, unmeasured, for the
    imports. Gives what was measured, and adds it to `into`."""
    context = multiprocessing.get_context("spawn")
    told = context.Queue()
    process = context.Process(target=_repeated, args=(what, least_s, given, told))
    process.start()
    here = _Tally()
    for found in told.get(timeout=900):
        here.add(*found)
        if into is not None:
            into.add(*found)
    process.join()
    return here


def _repeated(what: Callable[..., Any], least_s: float, given: tuple[Any, ...], told: Any) -> None:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
    image, xy_px, *rest = given
    what(image, xy_px[:WARM_SPOTS], *rest)
    found = [what(*given)]
    while sum(seconds for _, seconds, _ in found) < least_s:
        found.append(what(*given))
    told.put(found)


def _kernel_on_tiles(
    image: Path, xy_px: np.ndarray, sides: tuple[int, ...], work: Path
) -> tuple[int, float, dict[str, float]]:
    source = TiledJpeg(image)
    _, clock = run_kernel(source, xy_px, sides, max_px=MAX_PX, quality=QUALITY, out=work / "kernel.bin")
    source.close()
    return len(xy_px), clock.total, clock.seconds


def _kernel_on_one_piece(
    image: Path, xy_px: np.ndarray, sides: tuple[int, ...], work: Path
) -> tuple[int, float, dict[str, float]]:
    source = Decoded(image)
    _, clock = run_kernel(source, xy_px, sides, max_px=MAX_PX, quality=QUALITY, out=work / "kernel.bin")
    source.close()
    return len(xy_px), clock.total, clock.seconds


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


def _loop_on(image: Path, xy_px: np.ndarray, sides: tuple[int, int], work: Path) -> tuple[int, float, dict[str, float]]:
    spots = [(float(x), float(y)) for x, y in xy_px]
    done, seconds = run_peer_loop(image, spots, sides, max_px=MAX_PX, quality=QUALITY, out=work / "loop.h5")
    return done, seconds, {}


@dataclass(frozen=True, kw_only=True, eq=False)
class Section:
    """A real section as the kernel and the loop see it."""

    image: Path
    xy_px: np.ndarray
    sides: tuple[int, int]


def real_sections() -> dict[Path, list[Section]]:
    """Folders of the sample data whose sections are all taken in by the ingest, and these sections."""
    root = os.environ.get("HISTOLAKE_SAMPLE_DIR")
    found: dict[Path, list[Section]] = {}
    for folder in _folders(Path(root)) if root else ():
        sections = {inside: _sections_in(inside) for inside in (folder, *_folders(folder))}
        # The folder where all of it is taken in, else those in it that are.
        found |= {folder: sections[folder]} if sections[folder] else {f: s for f, s in sections.items() if s}
    return found


def _folders(place: Path) -> list[Path]:
    return sorted(path for path in place.iterdir() if path.is_dir())


def _sections_in(folder: Path) -> list[Section]:
    """Its sections, read as the ingest reads them; none where one is refused."""
    from histolake.ingestion import ingest_settings
    from histolake.ingestion.discover import find_sections
    from histolake.ingestion.rows import widths_um
    from histolake.ingestion.worker import look_and_keep
    from histolake.platform.errors import SourceError
    from histolake.platform.settings import load_settings

    settings = ingest_settings(load_settings())
    found = []
    for candidate in find_sections([str(folder)], "bench"):
        try:
            _, slide = look_and_keep(candidate, None, settings)
        except SourceError:
            return []
        um_per_px = slide.metadata.um_per_px
        if slide.image is None or um_per_px is None or not slide.image.endswith((".jpg", ".jpeg", ".png")):
            return []
        spot_px, niche_px = (max(1, round(um / um_per_px)) for um in widths_um(slide, settings.patches))
        found.append(Section(image=Path(slide.image), xy_px=slide.xy_px, sides=(spot_px, niche_px)))
    return found


def _on_sections(work: Path, folders: dict[Path, list[Section]]) -> dict[str, float]:
    """Rates on real sections, all of them together."""
    sections = [section for found in folders.values() for section in found]
    kernel, loop = _Tally(), _Tally()
    ingest = pipeline_rate(work, list(folders) * SLIDES, workers=1, spot_um=None)
    for section in sections:
        given = section.image, section.xy_px, section.sides, work
        for what, total in ((_kernel_on_one_piece, kernel), (_loop_on, loop)):
            rate = _alone(what, LONG_S / len(sections), *given).rate
            # Each section counts once, however often it was repeated.
            total.add(len(section.xy_px), len(section.xy_px) / rate)
    return {
        "codec_ratio": ingest.pairs_per_s / kernel.rate,
        "loop_speedup": ingest.pairs_per_s / loop.rate,
        "pairs_per_s": ingest.pairs_per_s,
        "kernel_pairs_per_s": kernel.rate,
        "loop_pairs_per_s": loop.rate,
    }


if __name__ == "__main__":
    assert __doc__ is not None
    main(measure, __doc__.splitlines()[0])
