"""The scale audit: what is used where all agree, and what is refused where they don't."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_array

from histolake.ingestion.scale import ScaleSettings, settle
from histolake.ingestion.slide import ScaleEvidence, Slide, SlideMetadata
from histolake.platform.errors import SourceError


def slide(*scales: tuple[str, float], **metadata: object) -> Slide:
    return Slide(
        metadata=SlideMetadata().updated(metadata),
        barcodes=np.array(["a"]),
        array_row=np.zeros(1, np.float32),
        array_col=np.zeros(1, np.float32),
        xy_px=np.zeros((1, 2)),
        counts=csr_array(np.ones((1, 1), np.float32)),
        symbols=["A"],
        ensembl_ids=None,
        image="image.tif",
        scales=tuple(ScaleEvidence(origin=o, um_per_px=v) for o, v in scales),  # type: ignore[arg-type]  # from a table
    )


def test_the_most_direct_statement_is_used_and_all_are_kept() -> None:
    settled = settle(slide(("fiducial", 0.51), ("pitch", 0.5)), 0.499, ScaleSettings())
    assert (settled.metadata.um_per_px, settled.metadata.scale_from) == (0.5, "pitch")
    assert {e.origin for e in settled.scales} == {"fiducial", "pitch", "image_tag"}
    stated = settle(slide(("pitch", 0.5), um_per_px="0.52"), None, ScaleSettings())
    assert (stated.metadata.um_per_px, stated.metadata.scale_from) == (0.52, "stated")
    only = settle(slide(), 0.25, ScaleSettings())
    assert (only.metadata.um_per_px, only.metadata.scale_from) == (0.25, "image_tag")


@pytest.mark.parametrize(("tag", "agrees"), [(0.5249, True), (0.5251, False), (0.4763, True), (0.4761, False)])
def test_five_percent_is_the_limit(tag: float, agrees: bool) -> None:
    if agrees:
        assert settle(slide(("pitch", 0.5)), tag, ScaleSettings()).metadata.um_per_px == 0.5
        return
    with pytest.raises(SourceError, match="scale_from = image_tag or pitch") as caught:
        settle(slide(("pitch", 0.5)), tag, ScaleSettings())
    assert (caught.value.rule, caught.value.limit) == ("scale_agrees", 0.05)
    assert caught.value.figure == pytest.approx(max(tag, 0.5) / min(tag, 0.5) - 1)


def test_a_curator_says_which_to_trust() -> None:
    told = settle(slide(("pitch", 0.5), scale_from="image_tag"), 0.25, ScaleSettings())
    assert (told.metadata.um_per_px, told.metadata.scale_from) == (0.25, "image_tag")
    assert settle(slide(("pitch", 0.5)), 0.25, ScaleSettings(trust="pitch")).metadata.um_per_px == 0.5
    # The setting is for many slides: where its origin says nothing the others are judged as ever.
    assert settle(slide(("pitch", 0.5)), None, ScaleSettings(trust="fiducial")).metadata.um_per_px == 0.5
    with pytest.raises(SourceError, match="taken from 'fiducial', which says nothing") as caught:
        settle(slide(("pitch", 0.5), scale_from="fiducial"), None, ScaleSettings())
    assert caught.value.rule == "scale_known"


def test_a_slide_without_any_scale_is_refused() -> None:
    with pytest.raises(SourceError, match="um_per_px, or pitch_um") as caught:
        settle(slide(), None, ScaleSettings())
    assert caught.value.rule == "scale_known"
