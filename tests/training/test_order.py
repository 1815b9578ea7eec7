"""The global order: a pure function that any number of workers share."""

from __future__ import annotations

import numpy as np
import pytest

from histolake.platform.errors import UsageError
from histolake.training.order import Order, Place

CHUNKS = [7, 5, 9, 1, 8, 10]


def sequence(order: Order, steps: int, ranks: int) -> list[Place]:
    return [place for step in range(steps) for rank in range(ranks) for place in order.places(step, rank, ranks)[2]]


@pytest.mark.parametrize("ranks", [2, 4])
def test_any_number_of_workers_reads_the_same_sequence(ranks: int) -> None:
    def make() -> Order:
        return Order(CHUNKS, seed=3, global_batch=8, window_rows=12)

    assert sequence(make(), 12, ranks) == sequence(make(), 12, 1)


def test_an_epoch_holds_each_row_at_most_once_and_only_the_tail_is_left_out() -> None:
    order = Order(CHUNKS, seed=0, global_batch=8, window_rows=12)
    assert order.steps_per_epoch == 5
    first = sequence(order, 5, 1)
    assert len(first) == len(set(first)) == 40
    assert all(0 <= place.row < CHUNKS[place.chunk] for place in first)
    second = sequence(order, 10, 1)[40:]
    assert set(second) != set() and second != first


def test_a_whole_epoch_is_a_permutation_of_the_rows() -> None:
    order = Order(CHUNKS, seed=5, global_batch=20, window_rows=16)
    every = {Place(chunk, row) for chunk, rows in enumerate(CHUNKS) for row in range(rows)}
    assert set(sequence(order, 2, 1)) == every


def test_the_order_depends_on_the_seed_alone_and_on_no_call_before() -> None:
    def make(seed: int = 1) -> Order:
        return Order(CHUNKS, seed=seed, global_batch=8)

    walked = make()
    sequence(walked, 9, 1)
    assert walked.places(7)[2] == make().places(7)[2]
    assert make().places(0)[2] != make(seed=2).places(0)[2]


def test_rows_mix_within_a_window_and_never_beyond_it() -> None:
    order = Order([10] * 20, seed=0, global_batch=10, window_rows=40)
    for window in range(5):
        places = [place for step in range(window * 4, window * 4 + 4) for place in order.places(step)[2]]
        assert len({place.chunk for place in places}) == 4
        assert {order.window(0, position) for position in range(window * 40, window * 40 + 40)} == {window}
    assert len({place.chunk for place in order.places(0)[2]}) > 1


def test_a_million_chunks_cost_no_list_of_rows() -> None:
    order = Order(np.full(1_000_000, 256), seed=0, global_batch=1024)
    assert order.rows == 256_000_000
    assert len(order.places(123_456)[2]) == 1024


def test_a_batch_larger_than_the_data_and_one_that_cannot_be_divided_are_refused() -> None:
    with pytest.raises(UsageError, match="larger than the 40 pairs"):
        Order(CHUNKS, seed=0, global_batch=41)
    with pytest.raises(UsageError, match="cannot be divided among 3 workers"):
        Order(CHUNKS, seed=0, global_batch=8).places(0, 0, 3)
