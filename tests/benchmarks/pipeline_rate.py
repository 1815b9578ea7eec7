"""The ingest of every day on some slides, with a number of workers: pairs a second, and the memory of its processes.

    python -m tests.benchmarks.pipeline_rate --workers 2 --lake DIR --out FILE.json [--spot-um 104] [--memory] SLIDE...

It is `pipeline.ingest` on a Ray of its own, confined to as many cores as there are workers. Some small sections go
before the slides, so that every worker has started and imported what it needs; time is taken from the last of these
to the last run of spots of the last slide. Reading, judging, tiling, encoding, sentences, counts, writing and staging
are in it; Ray's start, the workers' start and the last commit of the catalogue are not.

With `--memory`, memory is looked at four times a second; the rate is then of no use, for the kernel goes through all
pages of a process to tell, a third of a core's time. A worker's memory is its own (USS: pages that no other process
maps), without pages of the object store, which count as nobody's own or as those of the one who touched them first.
What of the object store was touched is told apart, summed over all of Ray's processes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.benchmarks.big_slide import QUICK, big_slide
from tests.processes import descendants

__all__ = ["Rate", "pipeline_rate"]

ROOT = Path(__file__).parents[2]
WARM = 3  # small sections for each worker
SAMPLE_S = 0.25


@dataclass(frozen=True, kw_only=True)
class Rate:
    """What one ingest came to."""

    pairs: int
    seconds: float
    worker_peak_mb: float  # of the worker with the most; 0 where nobody looked
    object_store_mb: float

    @property
    def pairs_per_s(self) -> float:
        """Pairs a second, of all workers together."""
        return self.pairs / self.seconds


def pipeline_rate(
    work: Path, slides: Sequence[Path], *, workers: int, spot_um: float | None, memory: bool = False
) -> Rate:
    """Ingest slides in a process of its own into a lake that is removed again."""
    out, lake = work / "rate.json", work / "rate-lake"
    shutil.rmtree(lake, ignore_errors=True)
    command = [sys.executable, "-m", "tests.benchmarks.pipeline_rate", "--workers", str(workers), "--work", str(work)]
    command += ["--lake", str(lake), "--out", str(out), *([] if spot_um is None else ["--spot-um", str(spot_um)])]
    command += ["--memory"] if memory else []
    subprocess.run([*command, *map(str, slides)], cwd=ROOT, check=True, stdout=sys.stderr)
    shutil.rmtree(lake)
    return Rate(**json.loads(out.read_text()))


def _measured(
    work: Path, lake: Path, slides: Sequence[Path], workers: int, spot_um: float | None, memory: bool
) -> Rate:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:workers])
    from histolake.ingestion import pipeline
    from histolake.ingestion.discover import find_sections
    from histolake.platform.cluster import ClusterSettings, start_ray
    from histolake.platform.lake import Lake
    from histolake.platform.settings import load_settings

    # The slides are copies of one, which is no reason to refuse them here.
    changes: dict[str, object] = {"duplicates.slides": "flag"} | ({"patches.spot_um": spot_um} if spot_um else {})
    settings = pipeline.ingest_settings(load_settings(changes))
    folders = [*_warming(work, WARM * workers), *_named(work, slides)]
    # A cohort each: sections may bear names in their own files, and a folder may come more than once.
    cohorts = [find_sections([str(folder)], f"bench-{number:03d}") for number, folder in enumerate(folders)]
    candidates = [candidate for cohort in cohorts for candidate in cohort]
    times: list[tuple[float, int]] = []

    def tell(what: str, done: int, _of: int) -> None:
        if what == "tiling spots":
            times.append((time.perf_counter(), done))

    watch = _Watch()
    with start_ray(ClusterSettings(cpus=workers + 1)), watch if memory else nullcontext():
        outcomes = pipeline.ingest(candidates, Lake.open(lake, create=True), settings, tell)
    assert all(outcome.status == "published" for outcome in outcomes), outcomes
    warm = sum(outcome.spots_kept for outcome in outcomes[: WARM * workers])
    began, before = next((when, done) for when, done in times if done >= warm)
    ended, done = times[-1]
    assert before == warm, "the small sections come first"
    return Rate(
        pairs=done - before,
        seconds=ended - began,
        worker_peak_mb=watch.worker_peak_mb,
        object_store_mb=watch.object_store_mb,
    )


def _warming(work: Path, count: int) -> list[Path]:
    """Small sections whose names come first."""
    return [_link(work / "warm" / f"0-{n}", big_slide(work, QUICK).folder) for n in range(count)]


def _named(work: Path, slides: Sequence[Path]) -> list[Path]:
    return [_link(work / "slides" / f"{n + 1}", slide) for n, slide in enumerate(slides)]


def _link(place: Path, target: Path) -> Path:
    """The same files in a folder of another name, so that it is another section."""
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(target, place, copy_function=os.link)
    return place


class _Watch:
    """Looks at the memory of this process's descendants as long as the block runs."""

    def __init__(self) -> None:
        self.worker_peak_mb = 0.0
        self.object_store_mb = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> _Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._stop.wait(SAMPLE_S):
            shared_kb = 0
            for pid, _ in descendants(os.getpid()):
                try:
                    told = Path(f"/proc/{pid}/cmdline").read_bytes()
                    rollup = Path(f"/proc/{pid}/smaps_rollup")
                    shared_kb += _sum_kb(rollup, ("Pss_Shmem",))
                    if told.startswith(b"ray::"):
                        # Its heap, and pages of files that it alone reads; a page of the object store is a dirty one.
                        own_kb = _sum_kb(Path(f"/proc/{pid}/status"), ("RssAnon",)) + _sum_kb(
                            rollup, ("Private_Clean",)
                        )
                        self.worker_peak_mb = max(self.worker_peak_mb, own_kb / 1024)
                except (FileNotFoundError, ProcessLookupError, PermissionError):
                    continue  # it has ended
            self.object_store_mb = max(self.object_store_mb, shared_kb / 1024)


def _sum_kb(place: Path, names: tuple[str, ...]) -> int:
    lines = (line.partition(":") for line in place.read_text().splitlines())
    return sum(int(value.split()[0]) for name, _, value in lines if name in names)


def main() -> None:
    """Read the command line, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slides", nargs="+", type=Path)
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--lake", type=Path, required=True)
    parser.add_argument("--spot-um", type=float)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    rate = _measured(given.work, given.lake, given.slides, given.workers, given.spot_um, given.memory)
    given.out.write_text(json.dumps(asdict(rate)))


if __name__ == "__main__":
    main()
