"""A judged slide, packed to be sent and unpacked again."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
from scipy.sparse import csr_array

from histolake.ingestion.handover import PackedSlide, pack
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
    packed = pack(before, PLENTY)
    assert packed is not None and packed.values.itemsize == bytes_each and packed.nbytes > packed.values.nbytes
    after = pickle.loads(pickle.dumps(packed))
    counts = after.counts(np.arange(len(before)))
    assert counts.dtype == np.float32
    assert np.array_equal(counts.toarray(), before.counts.toarray())
    assert counts.data.tolist() == before.counts.data.tolist(), "the order of the entries too"
    for name in ("barcodes", "array_row", "array_col", "xy_px"):
        np.testing.assert_array_equal(getattr(after.slide, name), getattr(before, name))
    told = (after.slide.metadata, after.slide.symbols, after.slide.image)
    assert told == (before.metadata, before.symbols, before.image)


def test_the_counts_of_some_spots() -> None:
    random = np.random.default_rng(0)
    counts = csr_array(random.poisson(0.5, (40, 30)).astype(np.float32))
    packed = PackedSlide.of(replace(slide([1.0]), counts=counts))
    for spots in ([0], [39], [3, 4, 5, 20], range(40), []):
        chosen = np.array(spots, dtype=np.int64)
        np.testing.assert_array_equal(packed.counts(chosen).toarray(), counts.toarray()[chosen])


def test_many_genes_need_wider_numbers() -> None:
    before = slide([1.0] * 70_000, genes=70_000)
    packed = pack(before, PLENTY)
    assert packed is not None and packed.genes.itemsize == 4
    assert (packed.counts(np.arange(len(before))) != before.counts).nnz == 0


def test_one_that_does_not_fit_is_left_out() -> None:
    before = slide([1.0] * 10_000)
    packed = pack(before, PLENTY)
    assert packed is not None and pack(before, packed.nbytes) is not None
    assert pack(before, packed.nbytes - 1) is None
    assert pack(before, 0) is None


def test_counts_can_be_written_to_though_what_was_sent_cannot() -> None:
    packed = pack(slide([1, 2, 3, 4]), PLENTY)
    assert packed is not None
    for array in (packed.values, packed.genes, packed.indptr):
        array.flags.writeable = False  # as an array in Ray's object store
    counts = packed.counts(np.arange(len(packed.slide)))
    counts.sum_duplicates()
    counts.data += 1
