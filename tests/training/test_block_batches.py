"""Batches where the split cuts through slides: pairs of training blocks alone, in an order that is a pure function, and
a reference of the same pairs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from histolake.platform.lake import Lake, Snapshot
from histolake.platform.splits import BLOCKS, Selection, Split
from histolake.training.inputs import Picture, Sentence
from histolake.training.loop import TrainPlan
from histolake.training.loop.feeds import first_pictures, make_feed
from histolake.training.models import build_encoder, load_model, save_model
from histolake.training.reading import PairReader, ReadOptions
from histolake.training.recipes import Recipe
from histolake.training.reference import write_reference
from histolake.training.sides import choose_sides
from histolake.training.tokenizers import make_tokenizer

# Spots lie 200 um apart; blocks of 400 um, and a gap of less than the pitch, leave two thirds of them in.
SPLIT = Split.spatial_blocks({"train": 0.6, "validation": 0.2, "test": 0.2}, seed=0, block_um=400, gap_um=150)
SLIDES = ("gen/A", "gen/B", "gen/C")
INPUTS = (Picture(column="niche_image", px=28), Sentence(column="sentence", tokenizer="bpe", context=20))
TOKENIZER = make_tokenizer("bpe", 20)


def side_of_each(snapshot: Snapshot, split: Split = SPLIT) -> dict[bytes, int]:
    """pair_id -> the code of its side, a pair at a time."""
    known = {row["slide_id"]: row for row in snapshot.slides().to_pylist()}
    rows = [row for b in snapshot.pairs(["pair_id", "slide_id", "x_um", "y_um"]) for row in b.to_pylist()]
    places = {
        row["pair_id"]: (known[row["slide_id"]], np.array([row["x_um"]]), np.array([row["y_um"]])) for row in rows
    }
    return {pair: int(split.rows(*place)[0]) for pair, place in places.items()}


def reader(snapshot: Snapshot, **changes: Any) -> PairReader:
    sides = {slide_id: side for slide_id, side in SPLIT.assign(snapshot.slides()).items() if slide_id in SLIDES}
    pairs = Selection.of(snapshot, SPLIT, sides, "train")
    told = {name: changes.pop(name) for name in ("rank", "ranks") if name in changes}
    options = ReadOptions(**({"global_batch": 4, "chunk_rows": 5} | changes))
    return PairReader(pairs, INPUTS, options, tokenizers={"sentence": TOKENIZER}, **told)


@pytest.mark.parametrize("ranks", [1, 2])
def test_an_epoch_is_the_training_pairs_once_each_at_any_number_of_workers(snapshot: Snapshot, ranks: int) -> None:
    codes = side_of_each(snapshot)
    mine = {row["pair_id"] for b in snapshot.pairs(["pair_id"], slide_ids=list(SLIDES)) for row in b.to_pylist()}
    trains = {pair for pair in mine if codes[pair] == 0}
    assert 8 < len(trains) < len(mine)
    workers = [reader(snapshot, rank=rank, ranks=ranks) for rank in range(ranks)]
    assert workers[0].order.rows == len(trains)
    steps = workers[0].order.steps_per_epoch
    shared = [list(worker.batches(0, steps)) for worker in workers]
    read = [pair for step in range(steps) for worker in shared for pair in worker[step].pair_ids]
    assert len(read) == len(set(read)) == steps * 4 and set(read) <= trains
    assert read == [pair for batch in reader(snapshot).batches(0, steps) for pair in batch.pair_ids]
    (resumed,) = list(reader(snapshot).batches(steps + 1, steps + 2))
    assert resumed.epoch == 1 and resumed.pair_ids == reader(snapshot).batch(steps + 1).pair_ids


def test_rows_are_those_of_the_lake(snapshot: Snapshot) -> None:
    truth = {row["pair_id"]: row["sentence"] for b in snapshot.pairs(["pair_id", "sentence"]) for row in b.to_pylist()}
    for batch in reader(snapshot, window_rows=16).batches(0, 6):
        np.testing.assert_array_equal(batch.tensors["sentence"], TOKENIZER([truth[pair] for pair in batch.pair_ids]))


def test_workers_plan_from_the_split_what_the_driver_counts(snapshot: Snapshot, micro: Recipe, tmp_path: Path) -> None:
    said: list[str] = []
    sides = choose_sides(snapshot, SPLIT, include_low_resolution=False, say=said.append)
    assert sides == dict.fromkeys(SLIDES, BLOCKS)
    assert said == ["kept out of training for low resolution: gen/D (--include-low-resolution takes them in)"]
    pairs = Selection.of(snapshot, SPLIT, sides, "train")
    plan = TrainPlan(
        recipe=dataclasses.replace(micro, global_batch=4),
        lake_uri=snapshot.lake.uri,
        lake_version=snapshot.version,
        slide_ids=pairs.slide_ids,
        steps=1,
        blocks=SPLIT,
        workers=1,
        run_name="r",
        storage=str(tmp_path),
    )
    planned = plan.pairs(snapshot)
    assert planned.parts() == pairs.parts()
    codes = side_of_each(snapshot)
    ids = next(make_feed(planned, plan, INPUTS, TOKENIZER, 0, 1).batches(0, 1)).pair_ids
    assert {codes[pair] for pair in ids} == {0}
    assert len(first_pictures(planned, plan, INPUTS)) == pairs.n_pairs


def test_the_reference_holds_pairs_of_training_blocks_alone(
    generated_lake: Callable[..., Lake], micro: Recipe, tmp_path: Path
) -> None:
    lake = generated_lake(tmp_path / "lake", {"gen/A": {"patient": "P1"}, "gen/B": {"patient": "P2"}})
    snapshot = lake.at()
    encoder = build_encoder(micro.model)
    card = {"image_column": "niche_image", "image_px": 28, "embed_dim": 32, "tokenizer": micro.tokenizer}
    card |= {"context": micro.context, "config": dict(micro.model), "recipe": micro.name}
    save_model(tmp_path / "model", encoder, card)
    sides = SPLIT.assign(snapshot.slides())
    figures = write_reference(tmp_path / "model", load_model(tmp_path / "model"), snapshot, sides, split=SPLIT)
    assert set(figures) == {"validation"}
    held = pq.read_table(tmp_path / "model" / "reference" / "reference.parquet")["pair_id"].to_pylist()
    codes = side_of_each(snapshot)
    assert set(held) == {pair for pair, code in codes.items() if code == 0}
