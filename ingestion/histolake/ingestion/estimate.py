"""What an ingest would cost, measured on a few spots of each section: bytes in the lake, seconds of work.

The patches of `SAMPLE` spots, spread over the section, are cut and encoded as they would be, and timed; the expression
is counted (8 bytes a value that is not zero, as it is stored before compression), and so are the sentences' letters.
Reading and judging the section is timed. The estimate knows nothing of a store that is slower to write than to read.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from histolake.ingestion.discover import Candidate
from histolake.ingestion.images import open_image
from histolake.ingestion.rows import IngestSettings, widths_um
from histolake.ingestion.slide import Slide
from histolake.ingestion.tiling import PairTiler, PatchSettings
from histolake.ingestion.worker import Look, look_and_keep

__all__ = ["SAMPLE", "Estimate", "survey"]

SAMPLE = 16  # spots
BYTES_A_VALUE = 8  # gene id and count
BYTES_A_ROW = 200  # ids, positions, the niche's members, figures of quality
LETTERS_A_GENE = 7  # symbol and space


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What one section would add to the lake, and how long one worker would be at it."""

    bytes: int
    seconds: float


def survey(candidate: Candidate, settings: IngestSettings) -> tuple[Look, Estimate]:
    """Read and judge a section as the ingest does, and estimate the rest. Raises `SourceError` where it is refused."""
    began = time.perf_counter()
    told, kept = look_and_keep(candidate, None, settings)
    reading_s = time.perf_counter() - began
    image_bytes, tiling_s = _a_spot(kept, settings.patches)
    n_genes_N = np.diff(kept.counts.indptr)
    sentence = 2 * LETTERS_A_GENE * float(np.minimum(n_genes_N, settings.sentences.length).mean())
    row = image_bytes + BYTES_A_VALUE * float(n_genes_N.mean()) + sentence + BYTES_A_ROW
    return told, Estimate(bytes=round(row * len(kept)), seconds=reading_s + tiling_s * len(kept))


def _a_spot(slide: Slide, patches: PatchSettings) -> tuple[float, float]:
    """Bytes of both pictures of a spot and the seconds to cut them, means over the sample."""
    um_per_px = slide.metadata.um_per_px
    if slide.image is None or um_per_px is None or not len(slide):
        return 0.0, 0.0
    chosen = np.unique(np.linspace(0, len(slide) - 1, SAMPLE).round().astype(int))
    image = open_image(slide.image)
    try:
        began = time.perf_counter()
        spot_um, niche_um = widths_um(slide, patches)
        tiler = PairTiler(
            image, slide.xy_px[chosen], spot_um=spot_um, niche_um=niche_um, um_per_px=um_per_px, settings=patches
        )
        tiles = tiler.pairs(0, len(chosen))
        jpegs = [jpeg for of_each in tiles for jpeg in of_each.jpegs]
        seconds = time.perf_counter() - began
    finally:
        image.close()
    return sum(map(len, jpegs)) / len(chosen), seconds / len(chosen)
