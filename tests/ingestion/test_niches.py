"""Niches against brute force."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.sparse import csr_array

from histolake.ingestion.niches import MOST_SPOTS, Niches, find_niches, nearest_spots, niche_sums, spots_within
from histolake.ingestion.tiling import PatchSettings
from histolake.platform.errors import SettingsError, SourceError
from histolake.platform.settings import load_settings


def by_hand(xy: np.ndarray, k: int) -> np.ndarray:
    distance = np.linalg.norm(xy[:, None] - xy[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    return np.argsort(np.round(distance, 6), axis=1, kind="stable")[:, :k]


def sums_of(dense: np.ndarray, niches: Niches, **how: Any) -> np.ndarray:
    return np.stack([sums.copy() for sums in niche_sums(csr_array(dense), niches, **how)])


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
    with_self = sums_of(dense, Niches.of_width(niche), include_self=True)
    without = sums_of(dense, Niches.of_width(niche), include_self=False)
    np.testing.assert_array_equal(without, dense[niche].sum(axis=1))
    np.testing.assert_array_equal(with_self, without + dense)
    of_run = sums_of(dense, Niches.of_width(niche), include_self=True, run=slice(7, 19))
    np.testing.assert_array_equal(of_run, with_self[7:19])


def test_spots_within_a_radius() -> None:
    xy = np.random.default_rng(3).uniform(0, 1000, (300, 2))
    niches = spots_within(xy, 120.0)
    distance = np.linalg.norm(xy[:, None] - xy[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    for i in range(300):
        near = np.flatnonzero(distance[i] <= 120)
        np.testing.assert_array_equal(niches.of(i), near[np.argsort(distance[i, near], kind="stable")])


def test_a_radius_on_a_grid_goes_by_the_spots_order_and_takes_the_rim() -> None:
    y, x = np.meshgrid(np.arange(5) * 100.0, np.arange(4) * 100.0, indexing="ij")
    niches = spots_within(np.stack([x.ravel(), y.ravel()], axis=1), 100.0)
    assert niches.of(0).tolist() == [1, 4]
    assert niches.of(5).tolist() == [1, 4, 6, 9]


def test_a_spot_alone_has_nobody() -> None:
    niches = spots_within(np.array([[0.0, 0.0], [5.0, 0.0], [900.0, 0.0]]), 10.0)
    assert [niches.of(i).tolist() for i in range(3)] == [[1], [0], []]
    counts = np.array([[1, 0], [0, 2], [4, 4]], dtype=np.float32)
    assert sums_of(counts, niches, include_self=True).tolist() == [[1, 2], [1, 2], [4, 4]]
    assert sums_of(counts, niches, include_self=False).tolist() == [[0, 2], [1, 0], [0, 0]]
    assert len(spots_within(np.zeros((0, 2)), 10.0)) == 0


def test_a_radius_that_takes_in_everything_is_refused() -> None:
    with pytest.raises(SourceError, match="niche_radius_um") as caught:
        spots_within(np.random.default_rng(0).uniform(0, 1, (MOST_SPOTS + 2, 2)), 10.0)
    assert (caught.value.rule, caught.value.figure, caught.value.limit) == ("niche_size", MOST_SPOTS + 1, MOST_SPOTS)


def test_the_settings_choose() -> None:
    xy = np.stack([np.arange(6) * 200.0, np.zeros(6)], axis=1)
    nearest = find_niches(xy, 0.5, PatchSettings(niche_k=2))
    assert [nearest.of(i).tolist() for i in range(6)] == [[1, 2], [0, 2], [1, 3], [2, 4], [3, 5], [4, 3]]
    radius = find_niches(xy, 0.5, PatchSettings(niche_by="radius", niche_radius_um=110.0))
    assert [radius.of(i).tolist() for i in range(6)] == [[1], [0, 2], [1, 3], [2, 4], [3, 5], [4]]


def test_the_picture_of_a_radius_shows_its_spots() -> None:
    assert PatchSettings().widths_um(55, 100) == (55, 255)
    assert PatchSettings(niche_by="radius", niche_radius_um=210).widths_um(55, 100) == (55, 475)
    assert PatchSettings(niche_um=300, spot_um=112).widths_um(55, 100) == (112, 300)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"niche_by": "ring"}, "it is one of nearest, radius"),
        ({"niche_by": "radius"}, "needs niche_radius_um above 0"),
        ({"niche_radius_um": 100.0}, 'set niche_by = "radius" or leave it out'),
        ({"niche_k": -1}, "niche_k is -1"),
        ({"spot_um": 0.0}, "spot_um is 0.0"),
        ({"niche_um": -5.0}, "niche_um is -5.0"),
        ({"max_px": 0, "jpeg_quality": 101}, "max_px is 0; it is 1 or more; jpeg_quality is 101"),
    ],
)
def test_settings_that_cannot_be_say_what_to_change(given: dict[str, object], told: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings({f"patches.{name}": value for name, value in given.items()})
    assert told in str(caught.value)
