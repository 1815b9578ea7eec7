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
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from histolake.platform.cluster import ClusterSettings, start_ray
from histolake.platform.errors import ModelError
from histolake.platform.splits import BLOCKS, SIDES, Selection, Split, mark_of
from histolake.platform.tracking import LINEAGE_FILE, TrackingSettings, connect, ensure_experiment
from histolake.training import registry
from histolake.training.evidence import PACKAGES_FILE, code_commit, log_dataset, log_steps, package_versions
from histolake.training.loop import BEST_BY, TrainPlan, fit, read_state
from histolake.training.planning import make_plan
from histolake.training.progress import Told, Watcher, make_board
from histolake.training.recipes import Recipe, as_params
from histolake.training.sides import check_request, choose_sides

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from histolake.platform.lake import Snapshot

__all__ = ["Trained", "train"]

GIT_COMMIT = "mlflow.source.git.commit"  # MLflow's own name for it, which its pages show
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
    genes_surviving_tokenizer: float | None
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
        plan = make_plan(
            recipe,
            pairs,
            split,
            sides,
            workers=workers,
            run_name=run_name or f"{recipe.name}-{uuid.uuid4().hex[:8]}",
            storage=storage or scratch,
            max_failures=max_failures,
            say=say,
        )
        with snapshot.reading(f"train {plan.run_name}"):
            return job.run(plan, cluster, Path(scratch), name or tracking.model, aliases, began)


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
        tags = self._tags()
        code = {GIT_COMMIT: commit} if (commit := code_commit()) else {}
        run_id = self.client.create_run(self.experiment_id, run_name=plan.run_name, tags=tags | code).info.run_id
        try:
            surviving = self._surviving(plan)
            self._log_request(run_id, plan, surviving)
            rows, state = self._fit(plan, cluster, run_id)
            folder, figures = self._finish(scratch / "model", state, plan, surviving, run_id)
            text = self._describe(folder, plan, figures, name, time.perf_counter() - began)
            version = registry.register(
                self.client, folder, text, run_id=run_id, name=name, tags=tags, aliases=(self.recipe.name, *aliases)
            )
        except BaseException:
            self.client.set_terminated(run_id, "FAILED")
            raise
        trained = self._summary(plan, rows, figures, surviving, name, version, run_id, time.perf_counter() - began)
        for key in ("loss_first", "loss_last", "seconds"):
            self.client.log_metric(run_id, key, getattr(trained, key))
        self.client.set_terminated(run_id)
        return trained

    def _describe(self, folder: Path, plan: TrainPlan, figures: Any, name: str, seconds: float) -> str:
        """Write the card for people into the model's folder; gives its text."""
        from histolake.training.model_card import CARD_TEXT_FILE, Evidence, model_card
        from histolake.training.models.files import read_card

        rows = {row["slide_id"]: row for row in self.snapshot.slides().to_pylist()}
        found = asdict(figures) if figures is not None else {}
        pairs = {side: Selection.of(self.snapshot, self.split, self.sides, side).n_pairs for side in SIDES}
        pairs[BLOCKS] = sum(pairs.values())  # of slides that are cut, all sides together
        text = model_card(
            Evidence(
                name=name,
                summary=self.recipe.summary,
                card=read_card(folder),
                slides=[rows[slide_id] | {"side": side} for slide_id, side in self.sides.items()],
                pairs=pairs,
                steps=plan.steps,
                global_batch=self.recipe.global_batch,
                workers=plan.workers,
                seconds=seconds,
                figures={key: value for key, value in found.items() if value == value},
                mark=self._mark(),
                versions=package_versions(),
            )
        )
        (folder / CARD_TEXT_FILE).write_text(text, encoding="utf-8")
        return text

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

    def _surviving(self, plan: TrainPlan) -> float | None:
        """Mean number of a sentence's genes that reach the model; None for a model that reads no sentences."""
        from histolake.training.models.files import config_defaults

        if "tokenizer" not in config_defaults(self.recipe.model["architecture"]):
            return None
        sentences: list[str] = []
        for batch in self.pairs.pairs(["sentence"]):
            sentences += batch["sentence"].to_pylist()
            if len(sentences) >= SENTENCES_SAMPLED:
                break
        surviving = plan.tokenizer().genes_surviving(sentences)
        self.say(f"{surviving:.1f} genes of a sentence survive the tokenizer on average")
        return surviving

    def _log_request(self, run_id: str, plan: TrainPlan, surviving: float | None) -> None:
        from mlflow.entities import Param

        values = as_params(self.recipe) | {
            "lake_uri": plan.lake_uri,
            "lake_version": plan.lake_version,
            "where": self.where or "",
            "workers": plan.workers,
            "train_slides": len(plan.slide_ids),
            "train_steps": plan.steps,
        }
        self.client.log_batch(run_id, params=[Param(key, str(value)) for key, value in values.items()])
        if surviving is not None:
            self.client.log_metric(run_id, "genes_surviving_tokenizer", surviving)
        wanted = ["slide_id", "ingest_id", "study", "patient", "accession", "source", "licence"]
        known = {row["slide_id"]: row for row in self.snapshot.slides().select(wanted).to_pylist()}
        slides = [known[slide_id] | {"side": side} for slide_id, side in self.sides.items()]
        registry.write_json(self.client, run_id, LINEAGE_FILE, slides)
        registry.write_json(self.client, run_id, PACKAGES_FILE, package_versions())
        for side in SIDES:
            read = Selection.of(self.snapshot, self.split, self.sides, side)
            if read.slide_ids:
                log_dataset(self.client, run_id, read, side, split=self.split, where=self.where)

    def _fit(self, plan: TrainPlan, cluster: ClusterSettings, run_id: str) -> tuple[list[dict[str, Any]], Any]:
        """Train; gives every step's row and the state of the checkpoint that is to be published."""
        told = Told(plan.steps, self.say, partial(log_steps, self.client, run_id))
        self.say(f"starting {plan.workers} workers for {self.recipe.name}")
        # Ray starts its processes by fork and exec, which Lance need not fear.
        warnings.filterwarnings("ignore", message="lance is not fork-safe")
        with start_ray(cluster):
            board = make_board()
            with Watcher(board, told.take):
                result = fit(plan, board)
            if told.stopped is not None:
                raise ModelError(told.stopped)
            checkpoint = result.checkpoint
            if self.recipe.publish == "best":
                checkpoint = max(result.best_checkpoints, key=lambda each: each[1].get(BEST_BY, float("-inf")))[0]
            with checkpoint.as_directory() as folder:
                state = read_state(folder)
        return told.rows, state

    def _finish(
        self, folder: Path, state: Any, plan: TrainPlan, surviving: float | None, run_id: str
    ) -> tuple[Path, Any]:
        """Write the model folder with its reference; gives it and the validation figures (None without that side)."""
        from histolake.training.models import build_encoder, load_model, save_model
        from histolake.training.reference import write_reference

        encoder = build_encoder(state["config"])
        if hasattr(encoder, "load_frozen"):
            encoder.load_frozen()
        encoder.load_state_dict(state["encoder"])
        save_model(folder, encoder, self._card(encoder, state, plan, surviving, run_id))
        self.say("embedding the pairs for the reference")
        figures = write_reference(folder, load_model(folder), self.snapshot, self.sides, split=self.split).get(
            "validation"
        )
        if figures is not None:
            for key, value in asdict(figures).items():
                if value == value:  # MLflow keeps numbers only
                    self.client.log_metric(run_id, f"{registry.FIGURE_PREFIX}{key}", value)
        return folder, figures

    def _card(
        self, encoder: Any, state: Mapping[str, Any], plan: TrainPlan, surviving: float | None, run_id: str
    ) -> dict[str, Any]:
        from histolake.training.inputs import Picture, Sentence

        column = self.recipe.image_column
        px = next(each.px for each in encoder.inputs if isinstance(each, Picture) and each.column == column)
        read = {}
        if any(isinstance(each, Sentence) for each in encoder.inputs):
            tokenizer = plan.tokenizer()
            read = {"tokenizer": tokenizer.name, "context": tokenizer.context, "tokenizer_card": tokenizer.card()}
        return {
            "recipe": self.recipe.name,
            "embed_dim": int(encoder.embed_dim),
            "image_column": column,
            "image_um": self._image_um(),
            "image_px": px,
            **read,
            "config": state["config"],
            "step": int(state["step"]),
            "lake": {"uri": self.snapshot.lake.uri, "version": self.snapshot.version},
            "split": self.split.to_dict(),
            "where": self.where,
            "simulated": self._tags()[registry.TAG_SIMULATED] == "true",
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
        surviving: float | None,
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
            train_steps=plan.steps,
            loss_first=float(np.mean(losses[:tenth])) if losses else float("nan"),
            loss_last=float(np.mean(losses[-tenth:])) if losses else float("nan"),
            pairs_per_s=float(np.median([row["pairs_per_s"] for row in rows])) if rows else float("nan"),
            genes_surviving_tokenizer=surviving,
            validation_recall_at_5pct=None if figures is None else figures.recall_at_5pct,
            validation_recall_at_10pct=None if figures is None else figures.recall_at_10pct,
            validation_pcc_mean=None if figures is None else figures.pcc_mean,
            seconds=seconds,
        )
