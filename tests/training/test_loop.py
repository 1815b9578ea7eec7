"""The loop on real Ray Train workers: what it computes does not depend on who died, how many share it, or how a batch
is cut; both models learn."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from histolake.platform.cluster import ClusterSettings, start_ray
from histolake.platform.export import ExportSpec, export
from histolake.platform.lake import Snapshot
from histolake.platform.splits import Selection, Split
from histolake.platform.storage import Location
from histolake.training.loop import BEST_BY, TrainPlan, fit, read_state
from histolake.training.planning import make_plan
from histolake.training.progress import Watcher, make_board
from histolake.training.recipes import Recipe, find_recipe, with_overrides

SIDES = {"gen/A": "train", "gen/B": "train", "gen/C": "validation"}
SPLIT = Split.named(train=["gen/A", "gen/B"], validation=["gen/C"])
Rows = dict[int, dict[str, Any]]


@pytest.fixture(scope="module", autouse=True)
def ray_here() -> Iterator[None]:
    """One Ray for all runs of this module."""
    with start_ray(ClusterSettings(cpus=4, object_store_mb=100)):
        yield


def plan(recipe: Recipe, snapshot: Snapshot, storage: Path | str, workers: int = 2) -> TrainPlan:
    pairs = Selection.of(snapshot, SPLIT, SIDES, "train")
    how: dict[str, Any] = {"workers": workers, "run_name": "run", "storage": str(storage), "max_failures": 1}
    return make_plan(recipe, pairs, SPLIT, SIDES, **how)


def run(
    wanted: TrainPlan, seen: Callable[[Rows], None] = lambda rows: None, said: list[str] | None = None
) -> tuple[Rows, Any]:
    """Every step's row, the last that was posted of it, and Ray Train's result."""
    rows: Rows = {}

    def take(news: list[dict[str, Any]]) -> None:
        (said if said is not None else []).extend(row["said"] for row in news if "said" in row)
        rows.update({int(row["step"]): row for row in news if "step" in row})
        seen(rows)

    board = make_board()
    with Watcher(board, take):
        result = fit(wanted, board)
    return rows, result


def losses(rows: Rows) -> list[float]:
    return [rows[step]["loss"] for step in sorted(rows)]


@pytest.fixture(scope="module")
def long(micro: Recipe) -> Recipe:
    """Two hundred quick steps, a checkpoint every twenty."""
    return replace(micro, name="micro-long", steps=200, checkpoint_every=20, lr=1e-3)


@pytest.fixture(scope="module")
def undisturbed(long: Recipe, snapshot: Snapshot, tmp_path_factory: pytest.TempPathFactory) -> Rows:
    """What the long recipe gives on two workers."""
    return run(plan(long, snapshot, tmp_path_factory.mktemp("undisturbed")))[0]


def workers_here() -> list[int]:
    """Processes of Ray Train's workers."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if b"RayTrainWorker" in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
            except OSError:  # it ended meanwhile
                continue
    return sorted(found)


def test_a_worker_that_is_killed_changes_no_loss(
    long: Recipe, snapshot: Snapshot, tmp_path: Path, undisturbed: Rows
) -> None:
    killed: list[int] = []

    def kill_one(rows: Rows) -> None:
        if not killed and max(rows) >= 60:
            killed.append(workers_here()[-1])
            os.kill(killed[0], signal.SIGKILL)

    rows, result = run(plan(long, snapshot, tmp_path), kill_one)
    assert killed and sorted(rows) == list(range(200))
    assert losses(rows) == losses(undisturbed), "bit for bit"
    with result.checkpoint.as_directory() as folder:
        assert read_state(folder)["step"] == 200


@pytest.mark.parametrize("change", [{"workers": 1}, {"workers": 4}, {"chunk_rows": 3}])
def test_workers_and_chunks_change_no_loss_by_more_than_rounding(
    long: Recipe, snapshot: Snapshot, tmp_path: Path, undisturbed: Rows, change: dict[str, int]
) -> None:
    """The same global batch at another world size, and by gradient caching, over fifty steps in float32."""
    workers = change.get("workers", 2)
    recipe = replace(long, stop_after=50, chunk_rows=change.get("chunk_rows", 0))
    rows, _ = run(plan(recipe, snapshot, tmp_path, workers))
    assert losses(rows) == pytest.approx(losses(undisturbed)[:50], abs=1e-5)


def test_checkpoints_in_an_object_store_are_gone_on_from(micro: Recipe, snapshot: Snapshot, bucket: str) -> None:
    storage = f"{bucket}/runs"
    first, _ = run(plan(replace(micro, stop_after=8), snapshot, storage))
    rest, result = run(plan(micro, snapshot, storage))
    assert sorted(first) == list(range(8)) and sorted(rest) == [8, 9, 10, 11]
    kept = {entry.location.parent().name for entry in Location.parse(f"{storage}/run").entries(recursive=True)}
    assert sum(name.startswith("checkpoint_") for name in kept) == micro.keep
    with result.checkpoint.as_directory() as folder:
        assert read_state(folder)["step"] == 12


def test_actors_that_decode_change_no_loss(long: Recipe, snapshot: Snapshot, tmp_path: Path, undisturbed: Rows) -> None:
    said: list[str] = []
    rows, _ = run(plan(replace(long, feed="ray", feed_workers=1, stop_after=30), snapshot, tmp_path), said=said)
    assert losses(rows) == losses(undisturbed)[:30] and said == []


def test_a_run_fed_by_shards_says_that_it_does_not_resume_exactly(
    long: Recipe, snapshot: Snapshot, tmp_path: Path
) -> None:
    to = Location.parse(tmp_path / "shards")
    export(snapshot, ExportSpec(name="t", slide_ids=("gen/A", "gen/B"), rows_per_shard=8), to)
    said: list[str] = []
    fed = replace(long, image_column="spot_image", feed="shards", shards=to.uri, stop_after=20)
    rows, _ = run(plan(fed, snapshot, tmp_path), said=said)
    assert sorted(rows) == list(range(20)) and losses(rows)[-1] < losses(rows)[0]
    (told,) = said
    assert "draws a new order for the rest of it" in told and f"lake version {snapshot.version}" in told


def test_st_align_learns_and_the_best_checkpoint_is_known(snapshot: Snapshot, tmp_path: Path) -> None:
    small = {
        "steps": "60",
        "global_batch": "16",
        "genes": "8",
        "warmup_steps": "4",
        "lr": "2e-3",
        "validate_every": "20",
        "checkpoint_every": "20",
        "publish": "best",
        "model.embed_dim": "32",
        "model.spot_width": "8",
        "model.spot_px": "28",
        "model.niche_px": "64",
        "model.vector_width": "32",
        "model.niche_patch_genes": "4",
        "model.niche_width": "32",
        "model.niche_layers": "1",
        "model.niche_heads": "2",
        "model.fusion_tokens": "4",
        "threads": "1",
    }
    recipe = with_overrides(find_recipe("st-align-tiny"), small)
    rows, result = run(plan(recipe, snapshot, tmp_path))
    values = losses(rows)
    assert sum(values[-6:]) < 0.8 * sum(values[:6])
    assert {"loss_spot", "loss_niche", "loss_spot_niche", "negatives", "waiting_share"} <= set(rows[0])
    assert rows[0]["negatives"] < 15, "neighbours are no negatives"
    assert rows[59]["weight_decay"] == pytest.approx(0.4) and rows[0]["weight_decay"] == pytest.approx(0.04)
    looks = {step: row[BEST_BY] for step, row in rows.items() if BEST_BY in row}
    assert sorted(looks) == [19, 39, 59] and all(0 <= value <= 1 for value in looks.values())
    kept = {metrics["step"]: metrics[BEST_BY] for _, metrics in result.best_checkpoints}
    assert max(kept.values()) == max(looks.values()) and 59 in kept, "the best, and the last"


def test_a_loss_that_is_no_number_says_which_pairs_it_was(micro: Recipe, snapshot: Snapshot, tmp_path: Path) -> None:
    wild = replace(micro, lr=1e30, warmup_steps=0)
    rows, _ = run(plan(wild, snapshot, tmp_path))
    step, told = next((step, row["stopped"]) for step, row in rows.items() if "stopped" in row)
    assert "not a number" in told and str(step) in told
    files = sorted((tmp_path / "run").glob("not-a-number-step-*.json"))
    assert len(files) == 2, "one a worker"
    named = [pair for file in files for pair in json.loads(file.read_text())["pair_ids"]]
    known = {row.hex() for batch in snapshot.pairs(["pair_id"]) for row in batch["pair_id"].to_pylist()}
    assert len(named) == 16 and set(named) <= known
