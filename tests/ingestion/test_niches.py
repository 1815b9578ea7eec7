"""Niches against brute force."""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_array

from histolake.ingestion.niches import Niches, nearest_spots, niche_sums


def by_hand(xy: np.ndarray, k: int) -> np.ndarray:
    distance = np.linalg.norm(xy[:, None] - xy[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    return np.argsort(np.round(distance, 6), axis=1, kind="stable")[:, :k]


def test_scattered_spots() -> None:
    xy = np.random.default_rng(0).uniform(0, 1000, (200, 2))
    np.testing.assert_array_equal(nearest_spots(xy, 3), by_hand(xy, 3))


def test_a_grid_is_full_of_ties_and_has_one_answer() -> None:
    y, x = np.meshgrid(np.arange(12) * 289.81, np.arange(9) * 289.81, indexing="ij")
    xy = np.stack([x.ravel(), y.ravel()], axis=1)
    for k in (1, 3, 5, 8):
        np.testing.assert_array_equal(nearest_spots(xy, k), by_hand(xy, k))


def test_spots_on_one_place() -> None:
    xy = np.zeros((30, 2))
    np.testing.assert_array_equal(nearest_spots(xy, 3), by_hand(xy, 3))


def test_fewer_spots_than_neighbours() -> None:
    assert nearest_spots(np.array([[0.0, 0.0], [3.0, 0.0], [1.0, 0.0]]), 5).tolist() == [[2, 1], [2, 0], [0, 1]]
    assert nearest_spots(np.zeros((1, 2)), 3).shape == (1, 0)


def test_sums_are_those_of_the_members() -> None:
    rng = np.random.default_rng(2)
    dense = rng.poisson(1.0, (40, 25)).astype(np.float32)
    niche = nearest_spots(rng.uniform(0, 100, (40, 2)), 3)
    with_self = niche_sums(csr_array(dense), Niches.of_width(niche), include_self=True).toarray()
    without = niche_sums(csr_array(dense), Niches.of_width(niche), include_self=False).toarray()
    np.testing.assert_array_equal(without, dense[niche].sum(axis=1))
    np.testing.assert_array_equal(with_self, without + dense)
