"""`train`: from a recipe and a pinned lake version to a registered model.

Checks first whatever can be checked, then trains (`loop`), embeds the training pairs (`reference`), and publishes
(`registry`). A read lease is held all the while, so that nothing that is read can be vacuumed away.
"""

from __future__ import annotations

import os
import tempfile
import time
import uuid
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from histolake.platform.cluster import ClusterSettings, start_ray
from histolake.platform.errors import UsageError
from histolake.platform.splits import BLOCKS, LEFT_OUT, SIDES, Selection, Split, mark_of
from histolake.platform.tracking import LINEAGE_FILE, TrackingSettings, connect, ensure_experiment
from histolake.training import registry
from histolake.training.loop import CHECKPOINT_FILE, TrainPlan, fit
from histolake.training.progress import Watcher, make_board
from histolake.training.recipes import Recipe, as_params

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from histolake.platform.lake import Snapshot
    from histolake.training.tokenizers import Tokenizer

__all__ = ["Trained", "train"]

LOW_RESOLUTION = "low_resolution"
NO_IMAGE = "image: none"
NAMED = 10  # slides named in a message
SENTENCES_SAMPLED = 2000  # for the mean number of genes that survive the tokenizer


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A finished run, flat. Losses are means over the first and last tenth of the steps; a figure that cannot be had
    is None."""

    name: str
    version: str
    model_uri: str
    run_id: str
    recipe: str
    lake_uri: str
    lake_version: int
    where: str | None
    validation_mark: str  # what has to be said beside the figures of the validation side
    train_slides: int
    train_pairs: int
    train_steps: int
    loss_first: float
    loss_last: float
    pairs_per_s: float
    genes_surviving_tokenizer: float
    validation_recall_at_5pct: float | None
    validation_recall_at_10pct: float | None
    validation_pcc_mean: float | None
    seconds: float


def train(
    recipe: Recipe,
    snapshot: Snapshot,
    split: Split,
    *,
    tracking: TrackingSettings,
    cluster: ClusterSettings,
    workers: int = 2,
    name: str | None = None,
    aliases: tuple[str, ...] = (),
    include_low_resolution: bool = False,
    where: str | None = None,
    run_name: str | None = None,
    storage: str | None = None,
    max_failures: int = 1,
    say: Callable[[str], None] = lambda line: None,
) -> Trained:
    """Train a recipe on the training side of a split, and register the model under `name` (the tracking settings' if
    none) with the recipe's name and `aliases` as aliases.

    `where` is a filter over the catalogue's columns (see `platform.lake.where`), such as `licence_id = 'CC-BY-4.0'`:
    slides for which it is not true are on no side. With the lake's version and the split it says what is read.
    `say` is told what goes on, a line at a time. `storage` (folder or URI) keeps checkpoints, and the same `run_name`
    there resumes; without it they live in a temporary folder for as long as the run. Workers that die are restarted
    from the last checkpoint, `max_failures` times. Raises `UsageError` or
    `SplitError`, before anything is started, for a request that cannot be.
    """
    # Threads that wait give way: the workers of Ray and this process share the cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    began = time.perf_counter()
    sides = choose_sides(snapshot, split, include_low_resolution=include_low_resolution, where=where, say=say)
    pairs = Selection.of(snapshot, split, sides, "train")
    check_request(recipe, pairs, workers)
    job = _Job(
        recipe=recipe,
        snapshot=snapshot,
        split=split,
        where=where,
        sides=sides,
        pairs=pairs,
        client=connect(tracking),
        experiment_id="",
        say=say,
    )
    job.experiment_id = ensure_experiment(tracking, job.client)
    with tempfile.TemporaryDirectory(prefix="histolake-train-") as scratch:
        plan = TrainPlan(
            recipe=recipe,
            lake_uri=snapshot.lake.uri,
            lake_version=snapshot.version,
            slide_ids=pairs.slide_ids,
            blocks=split if split.kind == BLOCKS else None,
            workers=workers,
            run_name=run_name or f"{recipe.name}-{uuid.uuid4().hex[:8]}",
            storage=storage or scratch,
            max_failures=max_failures,
        )
        with snapshot.reading(f"train {plan.run_name}"):
            return job.run(plan, cluster, Path(scratch), name or tracking.model, aliases, began)


def choose_sides(
    snapshot: Snapshot,
    split: Split,
    *,
    include_low_resolution: bool,
    where: str | None = None,
    say: Callable[[str], None],
) -> dict[str, str]:
    """slide_id -> side of every slide on a side for which the filter is true. A slide of low resolution doesn't train
    unless asked for; it may validate or test. One without an image is on no side. In a split by blocks the side is
    `BLOCKS`, and a slide of low resolution is on none.

    The sides are drawn before the filter, which moves no slide to another side: it only leaves slides out.
    """
    table = snapshot.slides()
    flags = dict(zip(table["slide_id"].to_pylist(), table["flags"].to_pylist(), strict=True))
    placings = split.placings(table)
    for slide_id, placing in sorted(placings.items()):
        if placing.side == LEFT_OUT and placing.rule != "unlisted":
            say(f"left out by the split: {slide_id} {placing.why}")
    sides = {slide_id: placing.side for slide_id, placing in placings.items() if placing.side in (*SIDES, BLOCKS)}
    if where is not None:
        meant = set(snapshot.slides(where=where)["slide_id"].to_pylist())
        others = sorted(set(sides) - meant)
        if others:
            say(f"{len(others)} of {len(sides)} slides left out by the filter {where!r}: {_some(others)}")
        sides = {slide_id: side for slide_id, side in sides.items() if slide_id in meant}
    blind = sorted(slide_id for slide_id in sides if NO_IMAGE in (flags[slide_id] or []))
    if blind:
        say(f"left out, for they have no image: {_some(blind)}")
        sides = {slide_id: side for slide_id, side in sides.items() if slide_id not in blind}
    if not include_low_resolution:
        trains = ("train", BLOCKS)
        coarse = sorted(s for s, side in sides.items() if side in trains and LOW_RESOLUTION in (flags[s] or []))
        if coarse:
            say(f"kept out of training for low resolution: {_some(coarse)} (--include-low-resolution takes them in)")
        sides = {slide_id: side for slide_id, side in sides.items() if slide_id not in coarse}
    return dict(sorted(sides.items()))


def _some(slide_ids: Sequence[str]) -> str:
    more = f" and {len(slide_ids) - NAMED} more" if len(slide_ids) > NAMED else ""
    return ", ".join(slide_ids[:NAMED]) + more


def check_request(recipe: Recipe, pairs: Selection, workers: int) -> None:
    """Raise `UsageError` for what could only fail later."""
    if workers < 1:
        raise UsageError(f"{workers} workers cannot train; give at least 1.")
    if not pairs.slide_ids:
        raise UsageError("The training side of the split has no slides; name some, or widen the split or the filter.")
    if (count := pairs.n_pairs) < recipe.global_batch:
        raise UsageError(
            f"There are {count} pairs to train on, fewer than one global batch of {recipe.global_batch}; "
            "name more slides or set a smaller global_batch."
        )
    if recipe.global_batch % workers:
        raise UsageError(
            f"A global batch of {recipe.global_batch} cannot be divided among {workers} workers; "
            "choose another number of workers or set global_batch."
        )


@dataclass(kw_only=True)
class _Job:
    """One run of `train`: what its steps share."""

    recipe: Recipe
    snapshot: Snapshot
    split: Split
    where: str | None
    sides: Mapping[str, str]
    pairs: Selection  # that are trained on
    client: MlflowClient
    experiment_id: str
    say: Callable[[str], None]

    def run(
        self,
        plan: TrainPlan,
        cluster: ClusterSettings,
        scratch: Path,
        name: str,
        aliases: tuple[str, ...],
        began: float,
    ) -> Trained:
        from histolake.training.tokenizers import make_tokenizer

        tags = self._tags()
        run_id = self.client.create_run(self.experiment_id, run_name=plan.run_name, tags=tags).info.run_id
        try:
            tokenizer = make_tokenizer(self.recipe.tokenizer, self.recipe.context)
            surviving = tokenizer.genes_surviving(self._some_sentences())
            self.say(f"{surviving:.1f} genes of a sentence survive the tokenizer on average")
            self._log_request(run_id, plan, surviving)
            rows, checkpoint = self._fit(plan, cluster, run_id)
            folder, figures = self._finish(scratch / "model", checkpoint, tokenizer, surviving, run_id)
            version = registry.register(
                self.client, folder, run_id=run_id, name=name, tags=tags, aliases=(self.recipe.name, *aliases)
            )
        except BaseException:
            self.client.set_terminated(run_id, "FAILED")
            raise
        trained = self._summary(plan, rows, figures, surviving, name, version, run_id, time.perf_counter() - began)
        for key in ("loss_first", "loss_last", "seconds"):
            self.client.log_metric(run_id, key, getattr(trained, key))
        self.client.set_terminated(run_id)
        return trained

    def _tags(self) -> dict[str, str]:
        slides = self.snapshot.slides().select(["slide_id", "simulated"]).to_pylist()
        return registry.model_tags(
            recipe=self.recipe.name,
            lake_uri=self.snapshot.lake.uri,
            lake_version=self.snapshot.version,
            split=self.split.to_dict(),
            where=self.where,
            simulated=any(row["simulated"] for row in slides if row["slide_id"] in self.sides),
            validation_mark=self._mark(),
        )

    def _mark(self) -> str:
        """What ties the validation side to the slides that train."""
        return mark_of("validation", self.snapshot.slides(), self.sides)

    def _some_sentences(self) -> list[str]:
        sentences: list[str] = []
        for batch in self.pairs.pairs(["sentence"]):
            sentences += batch["sentence"].to_pylist()
            if len(sentences) >= SENTENCES_SAMPLED:
                break
        return sentences

    def _log_request(self, run_id: str, plan: TrainPlan, surviving: float) -> None:
        from mlflow.entities import Param

        values = as_params(self.recipe) | {
            "lake_uri": plan.lake_uri,
            "lake_version": plan.lake_version,
            "where": self.where or "",
            "workers": plan.workers,
            "train_slides": len(plan.slide_ids),
        }
        self.client.log_batch(run_id, params=[Param(key, str(value)) for key, value in values.items()])
        self.client.log_metric(run_id, "genes_surviving_tokenizer", surviving)
        wanted = ["slide_id", "ingest_id", "study", "patient", "source", "licence"]
        known = {row["slide_id"]: row for row in self.snapshot.slides().select(wanted).to_pylist()}
        slides = [known[slide_id] | {"side": side} for slide_id, side in self.sides.items()]
        registry.write_json(self.client, run_id, LINEAGE_FILE, slides)

    def _fit(self, plan: TrainPlan, cluster: ClusterSettings, run_id: str) -> tuple[list[dict[str, Any]], Any]:
        """Train; gives every step's row and the last checkpoint's state."""
        import torch

        rows: dict[int, dict[str, Any]] = {}

        def take(news: list[dict[str, Any]]) -> None:
            rows.update({int(row["step"]): row for row in news})
            _log_steps(self.client, run_id, news)
            latest = news[-1]
            self.say(
                f"step {int(latest['step']) + 1}/{self.recipe.steps}  loss {latest['loss']:.3f}  "
                f"{latest['pairs_per_s']:.0f} pairs/s"
            )

        self.say(f"starting {plan.workers} workers for {self.recipe.name}")
        # Ray starts its processes by fork and exec, which Lance need not fear.
        warnings.filterwarnings("ignore", message="lance is not fork-safe")
        with start_ray(cluster):
            board = make_board()
            with Watcher(board, take):
                result = fit(plan, board)
            with result.checkpoint.as_directory() as folder:
                state = torch.load(Path(folder) / CHECKPOINT_FILE, map_location="cpu", weights_only=True)
        return [rows[step] for step in sorted(rows)], state

    def _finish(
        self, folder: Path, state: Any, tokenizer: Tokenizer, surviving: float, run_id: str
    ) -> tuple[Path, Any]:
        """Write the model folder with its reference; gives it and the validation figures (None without that side)."""
        from histolake.training.models import build_encoder, load_model, save_model
        from histolake.training.reference import write_reference

        card = self._card(tokenizer, surviving, run_id)
        encoder = build_encoder(card["config"])
        encoder.load_state_dict(state["encoder"])
        save_model(folder, encoder, card)
        self.say("embedding the pairs for the reference")
        figures = write_reference(folder, load_model(folder), self.snapshot, self.sides, split=self.split).get(
            "validation"
        )
        if figures is not None:
            for key, value in asdict(figures).items():
                if value == value:  # MLflow keeps numbers only
                    self.client.log_metric(run_id, f"{registry.FIGURE_PREFIX}{key}", value)
        return folder, figures

    def _card(self, tokenizer: Tokenizer, surviving: float, run_id: str) -> dict[str, Any]:
        tags = self._tags()
        return {
            "recipe": self.recipe.name,
            "embed_dim": int(self.recipe.model["embed_dim"]),
            "image_column": self.recipe.image_column,
            "image_um": self._image_um(),
            "image_px": self.recipe.image_px,
            "tokenizer": self.recipe.tokenizer,
            "context": self.recipe.context,
            "tokenizer_card": tokenizer.card(),
            "config": self.recipe.encoder_config(tokenizer.vocab_size),
            "lake": {"uri": self.snapshot.lake.uri, "version": self.snapshot.version},
            "split": self.split.to_dict(),
            "where": self.where,
            "simulated": tags[registry.TAG_SIMULATED] == "true",
            "run_id": run_id,
            "genes_surviving_tokenizer": surviving,
        }

    def _image_um(self) -> float | None:
        """Width of the training pictures on the tissue: the median over slides; None where no slide says it."""
        import numpy as np

        column = "spot_um" if self.recipe.image_column == "spot_image" else "niche_um"
        rows = self.snapshot.slides().select(["slide_id", column]).to_pylist()
        known = [row[column] for row in rows if row["slide_id"] in self.pairs.slide_ids and row[column]]
        return float(np.median(known)) if known else None

    def _summary(
        self,
        plan: TrainPlan,
        rows: list[dict[str, Any]],
        figures: Any,
        surviving: float,
        name: str,
        version: str,
        run_id: str,
        seconds: float,
    ) -> Trained:
        import numpy as np

        losses = [row["loss"] for row in rows]
        tenth = max(1, len(losses) // 10)
        return Trained(
            name=name,
            version=version,
            model_uri=f"models:/{name}/{version}",
            run_id=run_id,
            recipe=self.recipe.name,
            lake_uri=plan.lake_uri,
            lake_version=plan.lake_version,
            where=self.where,
            validation_mark=self._mark(),
            train_slides=len(plan.slide_ids),
            train_pairs=self.pairs.n_pairs,
            train_steps=self.recipe.steps,
            loss_first=float(np.mean(losses[:tenth])) if losses else float("nan"),
            loss_last=float(np.mean(losses[-tenth:])) if losses else float("nan"),
            pairs_per_s=float(np.median([row["pairs_per_s"] for row in rows])) if rows else float("nan"),
            genes_surviving_tokenizer=surviving,
            validation_recall_at_5pct=None if figures is None else figures.recall_at_5pct,
            validation_recall_at_10pct=None if figures is None else figures.recall_at_10pct,
            validation_pcc_mean=None if figures is None else figures.pcc_mean,
            seconds=seconds,
        )


def _log_steps(client: MlflowClient, run_id: str, rows: list[dict[str, Any]]) -> None:
    """All figures of some steps in as few calls as MLflow takes."""
    from mlflow.entities import Metric

    now_ms = int(time.time() * 1000)
    metrics = [
        Metric(key, float(value), now_ms, int(row["step"]))
        for row in rows
        for key, value in row.items()
        if key != "step"
    ]
    for start in range(0, len(metrics), 1000):
        client.log_batch(run_id, metrics=metrics[start : start + 1000])
