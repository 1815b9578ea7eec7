"""Real sections: the ingest of every day against the bare kernel and the loop that peers run.

    HISTOLAKE_SAMPLE_DIR=~/sections python -m tests.benchmarks.real_sections [--work DIR] [--out FILE.json] [--quick]

All that the ingest takes in from the folder, on one core, with Ray, start-up left out: `codec_ratio_real` over the
kernel and `loop_speedup_real` over the loop, which cut the same pictures (`codec` says what they do). Images are small
and in one piece, and the kernel and the loop read no counts: most of the ingest's time goes to what they do not do at
all. Without the sections there are no figures.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tests.benchmarks.alone import Figures, main
from tests.benchmarks.kernel import Decoded
from tests.benchmarks.one_core import Tally, alone, kernel_on, loop_on
from tests.benchmarks.pipeline_rate import pipeline_rate

__all__ = ["measure"]

LONG_S = 20.0  # of work a measurement
COPIES = 2  # of each section in one ingest


def measure(work: Path, quick: bool = False) -> Figures:
    """All figures; keys as in the module's docstring."""
    sections = real_sections()
    if not sections:
        print("no real sections: HISTOLAKE_SAMPLE_DIR names no folder", file=sys.stderr)
        return {}
    found = _on_sections(work, sections, copies=1 if quick else COPIES, long_s=0.0 if quick else LONG_S)
    return {f"{key}_real": value for key, value in found.items()}


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


def _on_sections(work: Path, folders: dict[Path, list[Section]], *, copies: int, long_s: float) -> dict[str, float]:
    """Rates on real sections, all of them together."""
    sections = [section for found in folders.values() for section in found]
    kernel, loop = Tally(), Tally()
    ingest = pipeline_rate(work, list(folders) * copies, workers=1, spot_um=None)
    for section in sections:
        given = section.image, section.xy_px, section.sides, work
        kernel_rate = alone(kernel_on, long_s / len(sections), *given, Decoded).rate
        loop_rate = alone(loop_on, long_s / len(sections), *given).rate
        for total, rate in ((kernel, kernel_rate), (loop, loop_rate)):
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
    main(measure, "Real sections: the ingest against the bare kernel and the loop that peers run.")
