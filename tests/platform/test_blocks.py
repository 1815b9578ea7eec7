"""Blocks of tissue: exactly by their definition, never nearer than the gap, and read row by row from a lake."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from histolake.platform.errors import SplitError
from histolake.platform.lake import Lake, Snapshot
from histolake.platform.splits import BLOCKS, LEFT_OUT, SIDES, Selection, Split
from histolake.platform.splits.blocks import OUT, block_sides

# The same examples every time: a test that fails here fails everywhere.
EXAMPLES = settings(deadline=None, derandomize=True, database=None)
HALVES = {"train": 0.5, "validation": 0.2, "test": 0.3}
SLIDE = {"slide_id": "c/a", "niche_um": 255.0}


def chessboard(i: int, j: int) -> int:
    return (i + j) % 2


def touched(x: float, y: float, block_um: float, gap_um: float) -> set[tuple[int, int]]:
    """The blocks that the square around a point reaches into, found by trying each nearby."""
    half, found = gap_um / 2, set()
    for i in range(int(x // block_um) - 2, int(x // block_um) + 3):
        for j in range(int(y // block_um) - 2, int(y // block_um) + 3):
            left, top = i * block_um, j * block_um
            if x + half > left and x - half < left + block_um and y + half > top and y - half < top + block_um:
                found.add((i, j))
    return found


@given(
    places=st.lists(st.tuples(st.integers(-4000, 4000), st.integers(-4000, 4000)), min_size=1, max_size=60),
    block_um=st.sampled_from([300.0, 1000.0, 777.7]),
    gap_um=st.sampled_from([0.5, 100.0, 255.0, 299.0]),
    seed=st.integers(0, 9),
)
@settings(EXAMPLES, max_examples=200)
def test_a_pair_is_in_exactly_when_its_square_is_on_one_side(
    places: list[tuple[int, int]], block_um: float, gap_um: float, seed: int
) -> None:
    sides = np.random.default_rng(seed).integers(0, 3, size=(64, 64))

    def side_of(i: int, j: int) -> int:
        return int(sides[i % 64, j % 64])

    # Off the borders by a hair, so that the band's rounding is not asked.
    xy = np.array(places, dtype=np.float64) + 0.123
    codes = block_sides(xy[:, 0], xy[:, 1], side_of, block_um=block_um, gap_um=gap_um)
    for (x, y), code in zip(xy, codes, strict=True):
        own = side_of(int(x // block_um), int(y // block_um))
        alone = {side_of(i, j) for i, j in touched(x, y, block_um, gap_um)} == {own}
        assert code == (own if alone else OUT)
    apart = np.abs(xy[:, None] - xy[None]).max(axis=2)
    differ = (codes[:, None] != codes[None]) & (codes[:, None] != OUT) & (codes[None] != OUT)
    assert not (differ & (apart < gap_um)).any()


def test_patches_of_two_sides_never_overlap_on_a_dense_slide() -> None:
    # Spots every 20 um: at the corner of four blocks two pairs may be near in x and in y at once.
    x, y = (axis.ravel() for axis in np.meshgrid(np.arange(0, 3000, 20), np.arange(0, 3000, 20)))
    codes = block_sides(x, y, chessboard, block_um=700, gap_um=255)
    one, other = (np.stack([x, y], 1)[codes == code] for code in (0, 1))
    assert len(one) > 2000 and len(other) > 2000
    nearest = np.array([np.abs(other - place).max(axis=1).min() for place in one])
    assert nearest.min() >= 255 and nearest.min() < 300, "and no more is left out than has to be"


def test_places_that_are_not_known_are_on_no_side() -> None:
    codes = block_sides(np.array([100.0, np.nan]), np.array([100.0, 5.0]), chessboard, block_um=700, gap_um=100)
    assert codes.tolist() == [0, OUT]
    with pytest.raises(ValueError, match="blocks of 100"):
        block_sides(np.zeros(1), np.zeros(1), chessboard, block_um=100, gap_um=100)


def test_rows_are_a_pure_function_of_slide_seed_and_place() -> None:
    split = Split.spatial_blocks(HALVES, seed=1, block_um=1000)
    x, y = np.random.default_rng(0).uniform(0, 30_000, size=(2, 4000)).astype(np.float32)
    codes = split.rows(SLIDE, x, y)
    np.testing.assert_array_equal(codes[:50], split.rows(SLIDE, x[:50], y[:50]))
    drawn = Split.spatial_blocks(HALVES, seed=1, block_um=1000, gap_um=0).rows(SLIDE, x, y)
    assert [(drawn == code).mean() for code in range(3)] == pytest.approx(list(HALVES.values()), abs=0.06)
    assert (codes != split.rows(SLIDE | {"slide_id": "c/b"}, x, y)).mean() > 0.2
    assert (codes != Split.spatial_blocks(HALVES, seed=2, block_um=1000).rows(SLIDE, x, y)).mean() > 0.2
    narrow = Split.spatial_blocks(HALVES, seed=1, block_um=1000, gap_um=10).rows(SLIDE, x, y)
    assert (narrow != OUT).mean() > 0.97 > (codes != OUT).mean()
    assert (narrow[codes != OUT] == codes[codes != OUT]).all()
    with pytest.raises(SplitError, match="not cut into blocks"):
        Split.by_unit(HALVES).rows(SLIDE, x, y)


def test_which_slides_are_cut() -> None:
    rows = [
        {"slide_id": "c/a", "niche_um": 255.0, "first_published": 1},
        {"slide_id": "c/again", "niche_um": 255.0, "first_published": 2, "look_alikes": ["c/a"]},
        {"slide_id": "c/third", "niche_um": 255.0, "first_published": 3, "look_alikes": ["c/again"]},
        {"slide_id": "c/wide", "niche_um": 2500.0, "first_published": 1},
        {"slide_id": "c/unknown", "niche_um": None, "first_published": 1},
    ]
    schema = [("slide_id", pa.string()), ("cohort", pa.string()), ("niche_um", pa.float64())]
    schema += [("first_published", pa.int64()), ("look_alikes", pa.list_(pa.string()))]
    table = pa.Table.from_pylist([{"cohort": "c", **row} for row in rows], schema=pa.schema(schema))
    split = Split.spatial_blocks(HALVES)
    assert split.assign(table) == {
        "c/a": BLOCKS,
        "c/again": LEFT_OUT,  # the same tissue under another name
        "c/third": BLOCKS,
        "c/wide": LEFT_OUT,
        "c/unknown": LEFT_OUT,
    }
    assert split.placings(table)["c/again"].why == "looks like c/a, which is cut into blocks"
    assert set(Split.spatial_blocks(HALVES, gap_um=100).assign(table).values()) == {BLOCKS, LEFT_OUT}
    assert split.cuts_units, "so that whoever asks marks the figures"


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory, writer: ModuleType) -> Snapshot:
    """Two slides of spots at random places, in fragments of sizes that no byte divides."""
    lake = Lake.open(tmp_path_factory.mktemp("blocks") / "lake", create=True)
    attempts = []
    for slide_id in ("c/a", "c/b"):
        attempt = lake.begin(slide_id, source_digest=slide_id, settings_digest="s", source=f"generated:{slide_id}")
        fragments, first = [], 0
        for size in (37, 101, 64):
            rows = writer.rows(slide_id, "d", size, first=first)
            xy = np.random.default_rng([first, *slide_id.encode()]).uniform(0, 4000, size=(2, size))
            for name, values in zip(("x_um", "y_um"), xy.astype(np.float32), strict=True):
                rows = rows.set_column(rows.column_names.index(name), name, [pa.array(values, pa.float32())])
            fragments.append(attempt.pairs.write(rows))
            first += size
        record = {"cohort": "c", "section": slide_id, "study": "s", "patient": slide_id, "niche_um": 255.0}
        attempt.stage(record, fragments, pa.table({"rule": pa.array([], pa.string())}))
        attempts.append(attempt)
    lake.publish(attempts)
    return lake.at()


def test_a_selection_reads_the_pairs_of_a_side_and_no_other(cut: Snapshot) -> None:
    split = Split.spatial_blocks(HALVES, block_um=800)
    sides = split.assign(cut.slides())
    whole = [row for batch in cut.pairs(["slide_id", "barcode", "x_um", "y_um"]) for row in batch.to_pylist()]
    known = {row["slide_id"]: row for row in cut.slides().to_pylist()}
    seen = []
    for code, side in enumerate(SIDES):
        selection = Selection.of(cut, split, sides, side)
        expected = [
            row["barcode"]
            for row in whole
            if split.rows(known[row["slide_id"]], np.array([row["x_um"]]), np.array([row["y_um"]]))[0] == code
        ]
        assert expected, side
        for rows in (5, 8, 64, 1000):
            got = [name for b in selection.pairs(["barcode"], batch_rows=rows) for name in b["barcode"].to_pylist()]
            assert got == expected
            parts = selection.parts(rows=rows)
            assert sum(part.rows for part in parts) == selection.n_pairs == len(expected)
            assert all(len(part.picked()) == part.rows > 0 for part in parts)
        one = [name for b in selection.pairs(["barcode"], slide_ids=["c/b"]) for name in b["barcode"].to_pylist()]
        assert one == [name for name in expected if name.startswith("c/b")]
        seen += expected
    assert len(seen) == len(set(seen)) < len(whole), "the band is on no side"


def test_a_selection_of_whole_slides_is_the_snapshot_s(cut: Snapshot) -> None:
    selection = Selection.of(cut, None, {"c/a": "test", "c/b": "train"}, "train")
    assert [part.chunk for part in selection.parts()] == cut.chunks(["c/b"])
    assert selection.n_pairs == 202 and selection.slide_ids == ("c/b",)
    expected = [batch["barcode"].to_pylist() for batch in cut.pairs(["barcode"], slide_ids=["c/b"])]
    assert [batch["barcode"].to_pylist() for batch in selection.pairs(["barcode"])] == expected


def test_a_slide_without_a_block_on_a_side_is_not_among_its_slides(cut: Snapshot) -> None:
    # One block holds all of a slide, and it trains.
    split = next(
        found
        for seed in range(50)
        for found in [Split.spatial_blocks({"train": 0.5, "test": 0.5}, seed=seed, block_um=10_000)]
        if not (found.rows(cut.slides().to_pylist()[0], np.array([900.0]), np.array([900.0]))[0])
    )
    trains, tests = (Selection.of(cut, split, split.assign(cut.slides()), side) for side in ("train", "test"))
    assert "c/a" in trains.slide_ids and "c/a" not in tests.slide_ids
