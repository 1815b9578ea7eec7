"""What several readers refuse in the same words: which name comes first, and the figures beside the sentence."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from histolake.ingestion.readers import Source
from histolake.ingestion.readers.refusals import check_columns, check_files, check_positions, check_unique
from histolake.platform.errors import SourceError


@pytest.mark.parametrize("barcodes", [["c", "b", "a", "b", "a", "b"], np.array(["c", "b", "a", "b", "a", "b"])])
def test_the_first_barcode_that_comes_again_is_named(barcodes: Sequence[str] | np.ndarray) -> None:
    with pytest.raises(SourceError, match=r"counts\.csv names 2 barcodes more than once, the first b;") as caught:
        check_unique(barcodes, "counts.csv")
    assert (caught.value.rule, caught.value.figure, caught.value.limit) == ("duplicate_barcodes", 2.0, 0.0)
    check_unique(["c", "b", "a"], "counts.csv")
    check_unique([], "counts.csv")


def test_the_columns_that_lack_are_named_in_their_order() -> None:
    with pytest.raises(SourceError, match=r"has no column y, pixel_x; it needs x, y and pixel_x\.") as caught:
        check_columns(["x", "other"], ("x", "y", "pixel_x"), "spots.tsv")
    assert (caught.value.rule, caught.value.figure) == ("positions_valid", 2.0)
    check_columns(["pixel_x", "y", "x"], ("x", "y", "pixel_x"), "spots.tsv")


def test_the_first_place_that_lacks_a_number_is_named() -> None:
    numbers = np.array([[0.0, 1.0], [np.inf, 1.0], [2.0, np.nan]])
    with pytest.raises(SourceError, match="2 positions lack a number, the first B") as caught:
        check_positions(numbers, ["A", "B", "C"], "spots.tsv")
    assert (caught.value.rule, caught.value.figure) == ("positions_valid", 2.0)
    check_positions(numbers[:1], ["A"], "spots.tsv")


def test_the_files_that_lack_are_named_with_what_the_format_needs() -> None:
    source = Source(reader="ours", uri="/in/s", files={"counts": "/in/s/c.h5"}, metadata={})
    with pytest.raises(SourceError, match=r"/in/s lacks p\.csv; a ours section needs both\.") as caught:
        check_files(source, {"counts": "c.h5", "spots": "p.csv"}, "both")
    assert (caught.value.rule, caught.value.figure, caught.value.file) == ("missing_file", 1.0, "/in/s/p.csv")
