"""Quality rules, one by one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.sparse import csr_array

from histolake.ingestion.quality import QualitySettings, check_section, judge_spots, quality_flags
from histolake.ingestion.slide import Slide, SlideMetadata, Spot
from histolake.platform.errors import SourceError

RULES = QualitySettings(min_spots=5, min_genes=3)


def make_slide(**changes: Any) -> Slide:
    n = 10
    slide = Slide(
        metadata=SlideMetadata(um_per_px=0.5),
        barcodes=np.array([f"b{i}" for i in range(n)]),
        array_row=np.arange(n, dtype=np.float32),
        array_col=np.zeros(n, dtype=np.float32),
        xy_px=np.stack([np.arange(n) * 100.0, np.full(n, 50.0)], axis=1),
        counts=csr_array(np.ones((n, 6), dtype=np.float32)),
        symbols=list("ABCDEF"),
        ensembl_ids=None,
        image="image.png",
        image_size_px=(3000, 2500),
        matrix_file="counts.tsv",
    )
    return replace(slide, **changes)


def refusal(slide: Slide, rules: QualitySettings = RULES) -> SourceError:
    with pytest.raises(SourceError) as caught:
        check_section(slide)
        judge_spots(slide, rules)
    return caught.value


def test_a_good_slide_keeps_its_spots() -> None:
    kept, refused = judge_spots(make_slide(), RULES)
    assert (len(kept), refused) == (10, [])


def test_a_spot_needs_more_expressed_genes_than_the_limit() -> None:
    dense = np.ones((10, 6), dtype=np.float32)
    dense[2, 3:] = 0  # three genes: not more than three
    dense[4, 4:] = 0  # four
    kept, refused = judge_spots(make_slide(counts=csr_array(dense)), RULES)
    assert kept.barcodes.tolist() == [f"b{i}" for i in range(10) if i != 2]
    assert kept.counts.shape == (9, 6)
    assert [(s.barcode, s.rule, s.figure, s.limit, s.x_px, s.y_px) for s in refused] == [
        ("b2", "min_genes", 3.0, 3.0, 200.0, 50.0)
    ]


def test_too_few_spots_left() -> None:
    error = refusal(make_slide(), QualitySettings(min_spots=11, min_genes=3))
    assert (error.rule, error.figure, error.limit) == ("min_spots", 10.0, 11.0)


def test_an_image_that_does_not_cover_the_spots() -> None:
    error = refusal(make_slide(image_size_px=(450, 400)))
    assert (error.rule, error.figure, error.limit, error.file) == ("image_covers_spots", 0.5, 0.9, "image.png")


def test_one_spot_beside_the_image_is_refused_alone() -> None:
    kept, refused = judge_spots(make_slide(image_size_px=(900, 400)), RULES)
    assert (len(kept), [(s.barcode, s.rule) for s in refused]) == (9, [("b9", "spot_in_image")])


def test_barcodes_that_match_no_position() -> None:
    lost = tuple(Spot(barcode=f"l{i}", rule="spot_position", reason="", file="spots.tsv") for i in range(15))
    error = refusal(make_slide(refused=lost))
    assert (error.rule, error.figure, error.limit, error.file) == ("barcodes_match", 0.4, 0.5, "spots.tsv")
    kept, refused = judge_spots(make_slide(refused=lost[:5]), RULES)
    assert (len(kept), len(refused)) == (10, 5)


@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf])
def test_counts_must_be_counts(value: float) -> None:
    dense = np.ones((10, 6), dtype=np.float32)
    dense[3, 2] = value
    error = refusal(make_slide(counts=csr_array(dense)))
    assert error.rule == "counts_valid"
    assert "for C of spot b3" in str(error)


def test_no_spots_at_all() -> None:
    assert refusal(make_slide().take(np.zeros(10, dtype=bool))).rule == "empty_section"


def test_flags_are_no_refusals() -> None:
    assert quality_flags(make_slide(), RULES) == ()
    assert quality_flags(make_slide(metadata=SlideMetadata(um_per_px=3.2)), RULES) == ("low_resolution",)
    assert quality_flags(make_slide(image_size_px=(9000, 1999)), RULES) == ("low_resolution",)
    assert quality_flags(make_slide(image=None, image_size_px=None), RULES) == ("image: none",)
