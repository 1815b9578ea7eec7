"""The five HER2ST sections, where the person who runs the tests has them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from histolake.ingestion.images import open_image
from histolake.ingestion.quality import QualitySettings, check_section, judge_spots, quality_flags
from histolake.ingestion.readers import Listing, reader
from histolake.ingestion.scale import ScaleSettings, settle
from histolake.ingestion.tiling import PatchSettings, tile
from histolake.platform.storage import Location

# section: um/px, spots read, flags
KNOWN = {
    "C2": (0.69, 187, ()),
    "C3": (0.69, 180, ()),
    "C4": (0.69, 184, ()),
    "C5": (0.69, 181, ()),
    "A1": (3.2, 346, ("image_reduced", "low_resolution")),
}


@pytest.mark.parametrize("section", KNOWN)
def test_scale_spots_and_tissue(real_sections: Path, section: str) -> None:
    um_per_px, spots, flags = KNOWN[section]
    folder = Location.parse(real_sections / "her2st" / section)
    (source,) = reader("legacy-st").find(Listing(folder))
    slide = settle(reader("legacy-st").read(source, {}), None, ScaleSettings())
    check_section(slide)
    kept, refused = judge_spots(slide, QualitySettings())
    assert slide.metadata.um_per_px == pytest.approx(um_per_px, rel=0.005)
    assert slide.n_read == spots
    assert len(kept) + len(refused) == spots
    assert len(refused) <= 2
    assert quality_flags(slide, QualitySettings()) == flags
    assert slide.image is not None
    image = open_image(slide.image)
    width, height = image.size_px
    anywhere = np.random.default_rng(0).uniform((0, 0), (width, height), (300, 2))
    on, off = (
        tile(image, centres, width_um=100, um_per_px=um_per_px, settings=PatchSettings()).tissue_fraction_N
        for centres in (kept.xy_px, anywhere)
    )
    image.close()
    # Spots lie on tissue; places drawn at random often do not.
    assert np.median(on) > 0.85
    assert on.min() > 0.3
    assert on.mean() > off.mean() + 0.2
