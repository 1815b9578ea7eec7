"""Units of expression: named, kept as they are, and flagged."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_array

from histolake.ingestion.expression_unit import unit_name, with_unit
from histolake.ingestion.slide import Slide, SlideMetadata
from histolake.platform.errors import SourceError


def slide_of(unit: str | None, values: list[list[float]]) -> Slide:
    n = len(values)
    return Slide(
        metadata=SlideMetadata(expression_unit=unit),
        barcodes=np.array([f"b{i}" for i in range(n)]),
        array_row=np.zeros(n, dtype=np.float32),
        array_col=np.zeros(n, dtype=np.float32),
        xy_px=np.zeros((n, 2)),
        counts=csr_array(np.array(values, dtype=np.float32)),
        symbols=["A", "B"],
        ensembl_ids=None,
        image=None,
        flags=("image_reduced",),
        matrix_file="counts.tsv",
    )


@pytest.mark.parametrize(
    ("stated", "values", "unit", "flag"),
    [
        ("counts", [[1, 2]], "counts", None),
        (None, [[1, 2]], "counts", None),
        ("UMI", [[1, 2]], "counts", None),
        (None, [[1, 2.5]], "normalised", "expression: normalised"),
        ("tpm", [[1, 2.5]], "TPM", "expression: TPM"),
        ("FPKM", [[1, 2]], "FPKM", "expression: FPKM"),  # whole by chance: what is stated stands
        ("log1p CP10K", [[0.5, 1]], "log1p CP10K", "expression: log1p CP10K"),
    ],
)
def test_a_unit_is_named_and_flagged(
    stated: str | None, values: list[list[float]], unit: str, flag: str | None
) -> None:
    slide = slide_of(stated, values)
    named = with_unit(slide)
    assert named.metadata.expression_unit == unit
    assert named.flags == (("image_reduced",) if flag is None else (flag, "image_reduced"))
    assert named.counts is slide.counts  # nothing is inverted


def test_fractions_that_are_said_to_be_counts_are_refused() -> None:
    with pytest.raises(SourceError, match="Say expression_unit = TPM, FPKM or normalised") as caught:
        with_unit(slide_of("counts", [[3, 0], [1, 0.25]]))
    assert (caught.value.rule, caught.value.figure, caught.value.limit) == ("counts_valid", 1.0, 0.0)
    assert "1 of 3 counts are no whole numbers, the first 0.25 for B of spot b1" in str(caught.value)


def test_no_unit_is_none() -> None:
    assert unit_name(" ") is None
    assert unit_name(None) is None
