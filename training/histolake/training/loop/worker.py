"""One worker's part of a run: what Ray Train calls, on a laptop's CPU as on each of many GPUs.

Each worker opens the lake at the pinned version, builds the model from the seed, and takes its slice of each global
batch; gradients are averaged by DistributedDataParallel, and the loss sees the pairs of all workers (`objectives`). A
run that resumes from a checkpoint goes on as if it had never stopped. Run again with the same folder and name, it
resumes from the last checkpoint.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from histolake.platform.storage import Location
from histolake.training.loop.checkpoints import load_state, read_state, save_state
from histolake.training.loop.feeds import first_pictures, make_feed, make_reader
from histolake.training.loop.gauge import Gauge
from histolake.training.loop.parts import make_optimizer
from histolake.training.loop.plan import TrainPlan
from histolake.training.loop.step import NotANumberError, Steps
from histolake.training.loop.validation import held_out_figures
from histolake.training.precision import attention_kernels, be_deterministic, compiled, compute_in

if TYPE_CHECKING:
    from histolake.platform.lake import Snapshot
    from histolake.training.reading import Batch, PairReader

__all__ = ["train_worker"]


def train_worker(config: dict[str, Any]) -> None:
    """What Ray Train calls in each worker; `config` holds the plan and the board that news go to."""
    _Worker(config["plan"], config["board"]).run()


class _Worker:
    def __init__(self, plan: TrainPlan, board: Any) -> None:
        import ray.train
        from ray.train.torch import get_device

        from histolake.platform.lake import Lake

        context = ray.train.get_context()
        self._plan, self._board = plan, board
        self._rank, self._ranks = context.get_world_rank(), context.get_world_size()
        self._device: torch.device = get_device()
        recipe = plan.recipe
        torch.set_num_threads(recipe.threads or max(1, (os.cpu_count() or 1) // self._ranks))
        be_deterministic(recipe.deterministic)
        compute_in(recipe.precision, self._device)
        self._snapshot = Lake.open(plan.lake_uri).at(plan.lake_version)
        self._tokenizer = plan.tokenizer()
        self._config = plan.model_config(self._tokenizer)

    def run(self) -> None:
        """Build, resume, step, report."""
        plan, recipe = self._plan, self._plan.recipe
        pairs = plan.pairs(self._snapshot)
        self._build(pairs)
        feed = make_feed(pairs, plan, self._encoder.inputs, self._tokenizer, self._rank, self._ranks)
        if feed.notice:
            self._post({"said": feed.notice})
        kin_S = torch.tensor([plan.kin.get(slide_id, -1) for slide_id in feed.slide_ids], device=self._device)
        steps = Steps(
            recipe=recipe,
            steps=plan.steps,
            model=self._model,
            encoder=self._encoder,
            optimizer=self._optimizer,
            rank=self._rank,
            kin_S=kin_S,
        )
        looks = self._looks(self._snapshot)
        stop = min(recipe.stop_after or plan.steps, plan.steps)
        began_s = time.perf_counter()
        for batch in feed.batches(self._start, stop):
            ready_s = time.perf_counter()
            try:
                with attention_kernels(self._device):
                    row = steps.run(batch.to(self._device))
            except NotANumberError as error:
                self._stop(batch, str(error))
                return
            ended_s = time.perf_counter()
            row |= self._measured(batch, ended_s - began_s, ready_s - began_s)
            done = batch.step + 1
            if looks and (done % recipe.validate_every == 0 or done == stop):
                row |= held_out_figures(self._encoder, *looks, self._device)
            self._post(row)
            if done == stop or done % recipe.checkpoint_every == 0:
                self._report(row, done)
            began_s = time.perf_counter()

    def _build(self, pairs: Any) -> None:
        """The model on its device, its optimiser, and the step to begin with."""
        import ray.train
        from ray.train.torch import prepare_model

        from histolake.training.loop.start import start_from
        from histolake.training.models import build_encoder

        plan, recipe = self._plan, self._plan.recipe
        torch.manual_seed(recipe.seed)
        encoder = self._encoder = build_encoder(self._config)
        if hasattr(encoder, "load_frozen"):
            encoder.load_frozen()
        checkpoint = ray.train.get_checkpoint()
        optimizer = self._optimizer = make_optimizer(encoder, recipe)
        self._start = 0
        if checkpoint is not None:
            with checkpoint.as_directory() as folder:
                state = read_state(folder)
            self._start = load_state(state, encoder=encoder, optimizer=optimizer, config=self._config)
        elif plan.weights:
            start_from(plan.weights, encoder, self._tokenizer)
        elif hasattr(encoder, "warm_start"):
            encoder.warm_start(first_pictures(pairs, plan, encoder.inputs))
        self._gauge = Gauge(encoder, self._device)
        if self._ranks > 1 and hasattr(encoder, "synchronise_batchnorm"):
            encoder.synchronise_batchnorm(str(self._device))
        compiled(encoder, recipe.compile)
        self._model = prepare_model(encoder, parallel_strategy_kwargs=_unused(encoder))
        for state in optimizer.state.values():
            for name, value in state.items():
                if torch.is_tensor(value) and name != "step":
                    state[name] = value.to(self._device)

    def _looks(self, snapshot: Snapshot) -> tuple[PairReader, int] | None:
        """The reader of the validation side and how many of its batches are looked at; None where nobody looks."""
        plan, recipe = self._plan, self._plan.recipe
        if not recipe.validate_every or not plan.validation_ids:
            return None
        pairs = plan.pairs(snapshot, "validation")
        size = min(recipe.global_batch, pairs.n_pairs) // self._ranks * self._ranks
        if not size:
            return None
        reader = make_reader(
            pairs, plan, self._encoder.inputs, self._tokenizer, self._rank, self._ranks, global_batch=size
        )
        return reader, min(reader.steps_per_epoch, max(1, recipe.validate_pairs // size))

    def _measured(self, batch: Batch, step_s: float, waited_s: float) -> dict[str, float]:
        """How fast, and where the time and the memory went."""
        rows = self._plan.recipe.global_batch
        row = {"step": batch.step, "epoch": batch.epoch, "waiting_share": waited_s / step_s}
        if batch.genes_surviving == batch.genes_surviving:  # a batch without sentences has none
            row["genes_surviving"] = batch.genes_surviving
        return row | self._gauge.read(rows / step_s, self._ranks)

    def _report(self, row: dict[str, float], done: int) -> None:
        """Hand a checkpoint to Ray Train; every worker calls it, the first one writes. It is copied to the storage
        while training goes on."""
        import ray.train
        from ray.train import Checkpoint, CheckpointUploadMode

        if self._rank != 0:
            ray.train.report(row)
            return
        folder = Path(tempfile.mkdtemp(prefix="histolake-checkpoint-"))
        save_state(folder, step=done, encoder=self._encoder, optimizer=self._optimizer, config=self._config)
        ray.train.report(
            row,
            checkpoint=Checkpoint.from_directory(folder),
            checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
            delete_local_checkpoint_after_upload=True,
        )

    def _stop(self, batch: Batch, why: str) -> None:
        """Say which pairs the batch was made of, and tell the driver; every worker gets here with the same step."""
        plan = self._plan
        place = Location.parse(plan.storage).join(
            plan.run_name, f"not-a-number-step-{batch.step}-worker-{self._rank}.json"
        )
        told = {"step": batch.step, "epoch": batch.epoch, "pair_ids": [pair_id.hex() for pair_id in batch.pair_ids]}
        place.write_bytes(json.dumps(told, indent=1).encode())
        self._post({"step": batch.step, "stopped": f"{why} Its pairs are listed in {place.uri}"})

    def _post(self, row: dict[str, Any]) -> None:
        """Tell the driver; the first worker speaks for all."""
        if self._rank == 0:
            self._board.post.remote(row)


def _unused(encoder: Any) -> dict[str, Any]:
    """Whether some trained parameters may get no gradient in a step: where several losses may be weighed by 0."""
    return {"find_unused_parameters": len(encoder.vector_needs) > 2}
