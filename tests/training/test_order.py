"""The global order: a pure function that any number of workers share."""

from __future__ import annotations

import numpy as np
import pytest

from histolake.platform.errors import UsageError
from histolake.training.reading import Order

CHUNKS = [7, 5, 9, 1, 8, 10]
Place = tuple[int, int]  # a chunk, and a row in it


def sequence(order: Order, steps: int, ranks: int, first: int = 0) -> list[Place]:
    slices = [order.slice(step, rank, ranks) for step in range(first, steps) for rank in range(ranks)]
    return [(chunk, row) for each in slices for chunk, row in each.places_B2.tolist()]


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
    assert all(0 <= row < CHUNKS[chunk] for chunk, row in first)
    second = sequence(order, 10, 1)[40:]
    assert set(second) != set() and second != first


def test_a_whole_epoch_is_a_permutation_of_the_rows() -> None:
    order = Order(CHUNKS, seed=5, global_batch=20, window_rows=16)
    every = {(chunk, row) for chunk, rows in enumerate(CHUNKS) for row in range(rows)}
    assert set(sequence(order, 2, 1)) == every


def test_the_order_depends_on_the_seed_alone_and_on_no_call_before() -> None:
    def make(seed: int = 1) -> Order:
        return Order(CHUNKS, seed=seed, global_batch=8)

    walked = make()
    sequence(walked, 9, 1)
    assert sequence(walked, 8, 1, 7) == sequence(make(), 8, 1, 7)
    assert sequence(make(), 1, 1) != sequence(make(seed=2), 1, 1)


def test_rows_mix_within_a_window_and_never_beyond_it() -> None:
    order = Order([10] * 20, seed=0, global_batch=10, window_rows=40)
    for window in range(5):
        places = sequence(order, window * 4 + 4, 1, window * 4)
        assert len({chunk for chunk, _ in places}) == 4
        assert {order.window(0, position) for position in range(window * 40, window * 40 + 40)} == {window}
        assert {order.window_end(0, position) for position in range(window * 40, window * 40 + 40)} == {
            window * 40 + 40
        }
    assert len({chunk for chunk, _ in sequence(order, 1, 1)}) > 1


def test_a_million_chunks_cost_no_list_of_rows() -> None:
    order = Order(np.full(1_000_000, 256), seed=0, global_batch=1024)
    assert order.rows == 256_000_000
    assert order.slice(123_456).places_B2.shape == (1024, 2)


def test_a_batch_larger_than_the_data_and_one_that_cannot_be_divided_are_refused() -> None:
    with pytest.raises(UsageError, match="larger than the 40 pairs"):
        Order(CHUNKS, seed=0, global_batch=41)
    with pytest.raises(UsageError, match="cannot be divided among 3 workers"):
        Order(CHUNKS, seed=0, global_batch=8).slice(0, 0, 3)


def test_groups_give_an_epoch_the_same_number_of_rows() -> None:
    rows, groups = [10] * 12 + [4] * 2 + [7] * 3, [0] * 12 + [1] * 2 + [2] * 3
    order = Order(rows, seed=0, global_batch=8, window_rows=40, groups=groups)
    assert order.rows == 149 and order.steps_per_epoch == 18
    drawn = {epoch: sequence(order, 18 * (epoch + 1), 1, 18 * epoch) for epoch in (0, 1, 2)}
    for places in drawn.values():
        share = np.bincount([groups[chunk] for chunk, _ in places]) / len(places)
        assert np.abs(share - 1 / 3).max() < 0.12, "but for the last chunk of each, and what the last batch leaves out"
    large = [{place for place in places if groups[place[0]] == 0} for places in drawn.values()]
    assert all(len(some) <= 60 for some in large) and len(set().union(*large)) > 60, "another part in every epoch"
    small = [place for place in drawn[0] if groups[place[0]] == 1]
    times = np.bincount([4 * (chunk - 12) + row for chunk, row in small], minlength=8)
    assert times.min() >= 4 and times.max() - times.min() <= 2, "each of a small group as often as the others"


def test_an_order_in_groups_is_a_pure_function_too() -> None:
    def make() -> Order:
        return Order(CHUNKS, seed=3, global_batch=8, window_rows=12, groups=[5, 5, 9, 9, 9, 2])

    assert sequence(make(), 12, 4) == sequence(make(), 12, 1)
    assert sequence(make(), 12, 1, 9) == sequence(make(), 12, 1)[72:]


def test_threads_at_different_epochs_share_an_order() -> None:
    """One reads ahead while another makes batches."""
    from concurrent.futures import ThreadPoolExecutor

    order = Order(CHUNKS, seed=1, global_batch=8, window_rows=12)
    want = [sequence(Order(CHUNKS, seed=1, global_batch=8, window_rows=12), step + 1, 1, step) for step in range(60)]
    with ThreadPoolExecutor(4) as pool:
        steps = [step for turn in range(20) for step in (turn, 59 - turn, turn + 30, 29 - turn)]
        assert list(pool.map(lambda step: sequence(order, step + 1, 1, step), steps)) == [want[step] for step in steps]
