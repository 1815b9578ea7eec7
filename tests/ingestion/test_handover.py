"""A judged slide, packed to be sent and unpacked again."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from scipy.sparse import csr_array

from histolake.ingestion.handover import pack
from histolake.ingestion.slide import Slide, SlideMetadata

PLENTY = 1 << 30


def slide(values: list[float], genes: int = 300, kind: type = np.int64) -> Slide:
    """Three spots, the second without a count."""
    n = len(values)
    columns, rows = np.arange(n, dtype=kind) % genes, np.array([0, n // 2, n // 2, n], dtype=kind)
    counts = csr_array((np.array(values, dtype=np.float32), columns, rows), shape=(3, genes))
    xy = np.array([[0.5, 1.0], [2.25, 3.0], [1e5 + 1 / 3, 7.0]])
    return Slide(
        metadata=SlideMetadata(section="s", um_per_px=0.5),
        barcodes=np.array(["a", "bb", "c"]),
        array_row=np.array([0, 0, np.nan], dtype=np.float32),
        array_col=np.array([0, 1, np.nan], dtype=np.float32),
        xy_px=xy,
        counts=counts,
        symbols=[f"G{i}" for i in range(genes)],
        ensembl_ids=None,
        image="image.tif",
    )


@pytest.mark.parametrize(
    ("values", "bytes_each"),
    [
        ([1, 2, 255, 3], 1),
        ([1, 256, 0, 65_535], 2),
        ([1, 65_536, 2, 3], 4),
        ([0.5, 1, 2, 3], 4),
        ([-1, 1, 2, 3], 4),
        ([16_777_216, 1, 1, 1], 4),
    ],
)
def test_what_comes_out_is_what_went_in(values: list[float], bytes_each: int) -> None:
    before = slide(values)
    packed, size = pack(before, PLENTY)
    assert packed is not None and packed.values.itemsize == bytes_each and size > packed.values.nbytes
    after = pickle.loads(pickle.dumps(packed)).unpacked()
    assert after.counts.dtype == np.float32
    assert np.array_equal(after.counts.toarray(), before.counts.toarray())
    assert after.counts.data.tolist() == before.counts.data.tolist(), "the order of the entries too"
    for name in ("barcodes", "array_row", "array_col", "xy_px"):
        np.testing.assert_array_equal(getattr(after, name), getattr(before, name))
    assert (after.metadata, after.symbols, after.image) == (before.metadata, before.symbols, before.image)


def test_many_genes_need_wider_numbers() -> None:
    before = slide([1.0] * 70_000, genes=70_000)
    packed, _ = pack(before, PLENTY)
    assert packed is not None and packed.genes.itemsize == 4
    assert (packed.unpacked().counts != before.counts).nnz == 0


def test_one_that_does_not_fit_is_left_out() -> None:
    before = slide([1.0] * 10_000)
    packed, size = pack(before, PLENTY)
    assert packed is not None and pack(before, size)[0] is not None
    assert pack(before, size - 1) == (None, 0)
    assert pack(before, 0) == (None, 0)


def test_the_unpacked_slide_can_be_written_to_though_what_was_sent_cannot() -> None:
    packed, _ = pack(slide([1, 2, 3, 4]), PLENTY)
    assert packed is not None
    for array in (packed.values, packed.genes, packed.indptr):
        array.flags.writeable = False  # as an array in Ray's object store
    after = packed.unpacked()
    after.counts.sum_duplicates()
    after.counts.data += 1
