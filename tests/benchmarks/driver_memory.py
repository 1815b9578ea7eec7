"""The driver's memory while it ingests a thousand sections.

    python -m tests.benchmarks.driver_memory [--work DIR] [--out FILE.json] [--quick]

`histolake ingest` is run by its own functions over sections of 72 spots, each in files of its own, with Ray as it is.
The memory is the driver's own (USS: what would be free if it ended), which leaves Ray's object store and the workers
out; it is taken each time a section is done. `driver_peak_mb` is the highest of it, `driver_mb_per_1000_slides` the
slope of a line through all after the first tenth, when every library is loaded: an outcome a section is kept for the
summary, and nothing else should grow.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
from tests.benchmarks.alone import Figures, main
from tests.ingestion.conftest import write_section

from histolake.ingestion.discover import find_sections
from histolake.ingestion.pipeline import ingest, ingest_settings
from histolake.platform.cluster import ClusterSettings, start_ray
from histolake.platform.lake import Lake
from histolake.platform.settings import load_settings

__all__ = ["measure", "own_mb"]

SECTIONS, QUICK = 1_000, 24


def measure(work: Path, quick: bool = False) -> Figures:
    """All figures; keys as in the module's docstring."""
    number = QUICK if quick else SECTIONS
    for name in ("sections", "lake"):
        shutil.rmtree(work / name, ignore_errors=True)
    for n in range(number):
        write_section(work / "sections" / f"section-{n:04d}", seed=n)
    settings = ingest_settings(load_settings())
    seen: list[tuple[int, float]] = []
    done = 0

    def tell(what: str, finished: int, of: int) -> None:
        nonlocal done
        if what == "tiling spots" and finished:
            done += 1
            seen.append((done, own_mb()))
            if done % 100 == 0:
                print(f"{done}: {seen[-1][1]:.0f} MB", file=sys.stderr, flush=True)

    with start_ray(ClusterSettings(cpus=3, object_store_mb=256)):
        lake = Lake.open(work / "lake", create=True)
        outcomes = ingest(find_sections([str(work / "sections")], "many"), lake, settings, tell)
    published = sum(outcome.status == "published" for outcome in outcomes)
    assert published == number, f"{published} of {number} sections were published: {outcomes[0].reason}"
    step_N, mb_N = np.array(seen[len(seen) // 10 :]).T
    per_step = float(np.polyfit(step_N, mb_N, 1)[0])
    return {
        "driver_peak_mb": max(mb for _, mb in seen),
        "driver_mb_per_1000_slides": per_step * len(seen) / number * 1_000,
        "driver_sections": float(published),
    }


def own_mb() -> float:
    """This process's own memory: pages that it shares with nobody."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    sizes = {line.split(":")[0]: float(line.split()[1]) for line in lines}
    return (sizes["Private_Clean"] + sizes["Private_Dirty"]) / 1024


if __name__ == "__main__":
    main(measure, __doc__)
