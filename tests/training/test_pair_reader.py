"""Batches from a real lake: the order's rows with the right bytes, the same at any number of workers, from any step."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from histolake.platform.errors import ModelError, UsageError
from histolake.platform.lake import Snapshot
from histolake.training.images import Augmentation, augment, decode
from histolake.training.reading import PairReader

SLIDES = ["gen/A", "gen/B", "gen/C"]


def reader(snapshot: Snapshot, **changes: Any) -> PairReader:
    options: dict[str, Any] = {"image_column": "niche_image", "px": 28, "global_batch": 8, "seed": 0, "chunk_rows": 5}
    return PairReader(snapshot, SLIDES, **(options | {"augmentation": Augmentation(stain=0.1, density=0.1)} | changes))


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_workers_together_read_the_batches_of_one(snapshot: Snapshot, ranks: int) -> None:
    alone = list(reader(snapshot).batches(0, 11))
    shared = [list(reader(snapshot, rank=rank, ranks=ranks).batches(0, 11)) for rank in range(ranks)]
    for step, batch in enumerate(alone):
        parts = [worker[step] for worker in shared]
        assert [pair for part in parts for pair in part.pair_ids] == batch.pair_ids
        np.testing.assert_array_equal(np.concatenate([part.image_BHWC for part in parts]), batch.image_BHWC)


def test_a_reader_that_starts_later_continues_the_sequence(snapshot: Snapshot) -> None:
    whole = list(reader(snapshot).batches(0, 12))
    for resumed, batch in zip(reader(snapshot).batches(7, 12), whole[7:], strict=True):
        assert (resumed.step, resumed.epoch, resumed.pair_ids) == (batch.step, batch.epoch, batch.pair_ids)
        np.testing.assert_array_equal(resumed.image_BHWC, batch.image_BHWC)


def test_rows_are_those_of_the_lake(snapshot: Snapshot) -> None:
    truth = {
        pair: (picture, sentence)
        for batch in snapshot.pairs(["pair_id", "niche_image", "sentence"])
        for pair, picture, sentence in zip(*(batch[name].to_pylist() for name in batch.schema.names), strict=True)
    }
    for batch in reader(snapshot, augmentation=None, window_rows=16).batches(0, 9):
        for pair, image_HWC, sentence in zip(batch.pair_ids, batch.image_BHWC, batch.sentences, strict=True):
            assert truth[pair][1] == sentence
            np.testing.assert_array_equal(image_HWC, decode(truth[pair][0], 28))


def test_an_error_while_reading_reaches_the_one_who_waits(snapshot: Snapshot) -> None:
    without_values = reader(snapshot, image_column="niche_sentence")
    with pytest.raises(UsageError, match="have no niche_sentence"):
        list(without_values.batches(0, 2))


def test_augmentation_is_drawn_from_the_position(snapshot: Snapshot) -> None:
    image_HWC = next(reader(snapshot).batches(0, 1)).image_BHWC[0]
    options = Augmentation(stain=0.2, density=0.1)
    first = augment([image_HWC, image_HWC], options, seed=1, epoch=0, positions=[4, 9])
    np.testing.assert_array_equal(first[1], augment([image_HWC], options, seed=1, epoch=0, positions=[9])[0])
    for other in ({"seed": 2}, {"epoch": 1}, {"positions": [10]}):
        drawn = augment([image_HWC], options, **({"seed": 1, "epoch": 0, "positions": [9]} | other))
        assert (drawn[0] != first[1]).any()


def test_turning_alone_keeps_every_pixel(snapshot: Snapshot) -> None:
    image_HWC = next(reader(snapshot).batches(0, 1)).image_BHWC[0]
    turned = augment([image_HWC] * 40, Augmentation(), seed=0, epoch=0, positions=range(40))
    assert len({picture.tobytes() for picture in turned}) == 8
    for picture in turned:
        np.testing.assert_array_equal(np.sort(picture.ravel()), np.sort(image_HWC.ravel()))
    untouched = dataclasses.replace(Augmentation(), flips=False)
    np.testing.assert_array_equal(augment([image_HWC], untouched, seed=0, epoch=0, positions=[0])[0], image_HWC)


def test_bytes_that_are_no_picture_are_named_so() -> None:
    with pytest.raises(ModelError, match="no JPEG or PNG"):
        decode(b"\xff\xd8\xffbroken", 28)
    with pytest.raises(ModelError, match="no JPEG or PNG"):
        decode(b"text", 28)
