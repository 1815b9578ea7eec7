"""Quality rules, one by one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.sparse import csr_array

from histolake.ingestion.quality import Measure, QualitySettings, check_section, judge_spots, quality_flags
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


def test_a_stored_zero_is_no_expressed_gene() -> None:
    counts = csr_array(np.ones((10, 6), dtype=np.float32))
    counts.data[12:15] = 0  # three of the six of b2
    _, refused = judge_spots(make_slide(counts=counts), RULES)
    assert [(s.barcode, s.figure) for s in refused] == [("b2", 3.0)]


def test_a_small_panel_is_told_which_setting_to_change() -> None:
    error = refusal(make_slide(), QualitySettings(min_spots=5, min_genes=200))
    assert error.rule == "min_spots"
    assert "10 have no more than 200 expressed genes (the median is 6, and the source measures 6)" in str(error)
    assert "HISTOLAKE_QUALITY__MIN_GENES=10" in str(error)
    assert "MIN_GENES" not in str(refusal(make_slide(), QualitySettings(min_spots=11, min_genes=3)))


def by_patch(tissue: list[float], focus: list[float]) -> Measure:
    """What is measured on the patches of ten spots, told for those that are asked for."""

    def measure(slide: Slide) -> tuple[np.ndarray, np.ndarray]:
        places = [int(barcode[1:]) for barcode in slide.barcodes]
        return np.array(tissue)[places], np.array(focus)[places]

    return measure


def test_patches_without_tissue_or_out_of_focus() -> None:
    tissue = [0.9, 0.1, 0.9, 0.15, *[1.0] * 6]
    focus = [0.5, 0.5, 0.01, 0.5, *[0.5] * 6]
    rules = replace(RULES, min_tissue=0.15, min_focus=0.1)
    dense = np.ones((10, 6), dtype=np.float32)
    dense[9, 3:] = 0
    kept, refused = judge_spots(make_slide(counts=csr_array(dense)), rules, measure=by_patch(tissue, focus))
    assert [(s.barcode, s.rule, s.figure, s.limit, s.file) for s in refused] == [
        ("b1", "min_tissue", 0.1, 0.15, "image.png"),
        ("b2", "min_focus", 0.01, 0.1, "image.png"),
        ("b9", "min_genes", 3.0, 3.0, "counts.tsv"),
    ]
    assert len(kept) == 7


def test_patches_are_not_measured_without_need() -> None:
    def never(_: Slide) -> tuple[np.ndarray, np.ndarray]:
        raise AssertionError("nobody asked")

    judge_spots(make_slide(), RULES, measure=never)
    judge_spots(make_slide(image=None, image_size_px=None), replace(RULES, min_tissue=0.5), measure=never)


def test_a_spot_that_repeats_another() -> None:
    dense = np.arange(1, 61, dtype=np.float32).reshape(10, 6)
    dense[[4, 7]] = dense[2]
    dense[8] = dense[9]
    dense[[8, 9], 4:] = 0  # four genes: too few to tell
    kept, refused = judge_spots(make_slide(counts=csr_array(dense)), RULES, spot_genes=5)
    assert [(s.barcode, s.rule, s.file) for s in refused] == [
        ("b4", "duplicate_spot", "counts.tsv"),
        ("b7", "duplicate_spot", "counts.tsv"),
    ]
    assert "spot b2" in refused[0].reason
    assert len(kept) == 8
