"""Pooling cells into spots: where they go, that nothing is lost, and the lattice itself."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_array

from histolake.ingestion.readers.pooling import pool


def cells(n: int = 4000, seed: int = 0, extent_um: float = 1500.0) -> tuple[csr_array, np.ndarray]:
    rng = np.random.default_rng(seed)
    counts = csr_array(rng.poisson(0.4, (n, 30)).astype(np.float32))
    return counts, rng.uniform(-extent_um / 3, extent_um, (n, 2))


def lattice(layout: str, pitch: float, extent_um: float = 2000.0) -> np.ndarray:
    """All centres, written down without the numbering under test."""
    n = int(2 * extent_um / pitch) + 3
    rows = np.arange(-n, n)
    high = pitch * (np.sqrt(3) / 2 if layout == "hexagonal" else 1)
    shift = pitch / 2 if layout == "hexagonal" else 0.0
    return np.array([(c * pitch + (r % 2) * shift, r * high) for r in rows for c in np.arange(-n, n)])


@pytest.mark.parametrize("layout", ["hexagonal", "square"])
@pytest.mark.parametrize("keep_all", [True, False])
def test_each_cell_goes_to_the_nearest_centre(layout: str, keep_all: bool) -> None:
    counts, xy = cells()
    got = pool(counts, xy, pitch_um=100, diameter_um=55, layout=layout, keep_all=keep_all)
    centres = lattice(layout, 100)
    away = np.hypot(xy[:, None, 0] - centres[None, :, 0], xy[:, None, 1] - centres[None, :, 1])
    nearest, distance = away.argmin(1), away.min(1)
    inside = np.ones(len(xy), bool) if keep_all else distance <= 27.5
    assert got.outside == int((~inside).sum())
    np.testing.assert_array_equal(got.spot_N >= 0, inside)
    np.testing.assert_allclose(got.xy_um_S2[got.spot_N[inside]], centres[nearest[inside]], atol=1e-9)
    dense = counts.toarray()
    for s in range(0, len(got.cells), 17):
        np.testing.assert_array_equal(got.counts_SG[[s]].toarray()[0], dense[got.spot_N == s].sum(0))
        assert got.cells[s] == (got.spot_N == s).sum()


def test_counts_are_conserved() -> None:
    counts, xy = cells()
    everything = pool(counts, xy, pitch_um=100, diameter_um=55, keep_all=True)
    assert everything.outside == 0
    np.testing.assert_array_equal(everything.counts_SG.sum(0), counts.sum(0))
    circles = pool(counts, xy, pitch_um=100, diameter_um=55)
    out = np.flatnonzero(circles.spot_N < 0)
    np.testing.assert_array_equal(circles.counts_SG.sum(0) + counts[out].sum(0), counts.sum(0))
    # The circles cover pi/4 (55/100)^2 / (sqrt(3)/2) of the plane.
    assert 1 - circles.outside / len(xy) == pytest.approx(np.pi / 4 * 0.55**2 / (np.sqrt(3) / 2), abs=0.03)


def test_numbering_is_that_of_visium_and_spots_are_in_raster_order() -> None:
    got = pool(*cells(), pitch_um=100, diameter_um=55, keep_all=True)
    np.testing.assert_array_equal(got.array_row % 2, got.array_col % 2)
    assert min(got.array_row.min(), got.array_col.min()) >= 0
    order = np.lexsort((got.array_col, got.array_row))
    np.testing.assert_array_equal(order, np.arange(len(order)))
    offset = got.xy_um_S2 - np.stack([got.array_col * 50, got.array_row * 50 * np.sqrt(3)], 1)
    np.testing.assert_allclose(offset, np.broadcast_to(offset[0], offset.shape), atol=1e-6)
    square = pool(*cells(), pitch_um=8, diameter_um=8, layout="square", keep_all=True)
    assert (square.array_row.min(), square.array_col.min()) == (0, 0)


def test_the_lattice_stands_still() -> None:
    counts, xy = cells()
    whole = pool(counts, xy, pitch_um=100, diameter_um=55)
    part = pool(counts[1000:], xy[1000:], pitch_um=100, diameter_um=55)
    for s, (x, y) in enumerate(part.xy_um_S2):
        assert np.any(np.all(np.isclose(whole.xy_um_S2, (x, y)), axis=1)), s


def test_a_cell_on_the_rim_is_inside() -> None:
    xy = np.array([[27.5, 0.0], [27.6, 0.0], [0.0, 0.0]])
    got = pool(csr_array(np.eye(3, dtype=np.float32)), xy, pitch_um=100, diameter_um=55)
    assert got.spot_N.tolist() == [0, -1, 0]
    assert got.outside == 1


def test_no_cells_and_circles_that_overlap() -> None:
    none = pool(csr_array((0, 3), dtype=np.float32), np.empty((0, 2)), pitch_um=100, diameter_um=55)
    assert none.counts_SG.shape == (0, 3)
    assert none.outside == 0
    with pytest.raises(ValueError, match="do not fit"):
        pool(*cells(), pitch_um=100, diameter_um=120)
    with pytest.raises(ValueError, match="finite"):
        pool(csr_array((1, 3), dtype=np.float32), np.array([[np.nan, 0]]), pitch_um=100, diameter_um=55)
