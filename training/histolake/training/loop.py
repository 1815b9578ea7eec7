"""The training loop: the same function on one laptop CPU and on many GPU nodes, under Ray Train.

Each worker opens the lake at the pinned version, builds the model from the seed, and takes its slice of each global
batch; gradients are averaged by DistributedDataParallel, and the loss sees the pairs of all workers (`objectives`).
What is drawn at random in a step (dropout) is seeded by (seed, step, rank), so a run that resumes from a checkpoint
goes on as if it had never stopped. Run again with the same folder and name, it resumes from the last checkpoint.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from histolake.platform.splits import BLOCKS, Selection, Split
from histolake.training.recipes import Recipe

__all__ = ["CHECKPOINT_FILE", "TrainPlan", "fit"]

CHECKPOINT_FILE = "state.pt"
WARM_START_PICTURES = 256


@dataclass(frozen=True, kw_only=True)
class TrainPlan:
    """All that a worker needs to know; sent to each."""

    recipe: Recipe
    lake_uri: str
    lake_version: int
    slide_ids: tuple[str, ...]  # that are trained on
    workers: int
    run_name: str
    storage: str  # folder or URI of checkpoints
    blocks: Split | None = None  # where the split cuts through slides: the pairs of its training blocks are read
    max_failures: int = 1  # how often the group may be restarted from its last checkpoint


def fit(plan: TrainPlan, board: Any) -> Any:
    """Train; gives Ray Train's result, whose checkpoint holds the final state. Ray must be running."""
    # A checkpoint counts only once the controller has asked for it; by default it asks every two seconds.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    import ray
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from histolake.platform.storage import Location

    place = Location.parse(plan.storage)
    filesystem, path = place.filesystem()
    use_gpu = ray.cluster_resources().get("GPU", 0) >= plan.workers
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"plan": plan, "board": board},
        scaling_config=ScalingConfig(num_workers=plan.workers, use_gpu=use_gpu),
        run_config=RunConfig(
            name=plan.run_name,
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=plan.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
        ),
    )
    try:
        return trainer.fit()
    except ray.train.WorkerGroupError as error:
        raise _own_error(error) from error


def _own_error(error: Any) -> Exception:
    """The error of ours that a worker raised, if that is what ended the training; else Ray's."""
    from histolake.platform.errors import HistolakeError

    for failure in error.worker_failures.values():
        cause = getattr(failure, "cause", failure)
        if isinstance(cause, HistolakeError):
            return type(cause)(str(cause))
    return error


def train_worker(config: dict[str, Any]) -> None:
    """One worker's part: what Ray Train calls."""
    import ray.train
    import torch
    from ray.train.torch import get_device, prepare_model

    from histolake.platform.lake import Lake
    from histolake.training.models import build_encoder
    from histolake.training.tokenizers import make_tokenizer

    plan: TrainPlan = config["plan"]
    recipe = plan.recipe
    context = ray.train.get_context()
    rank, ranks = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(recipe.threads or max(1, (os.cpu_count() or 1) // ranks))
    device = get_device()

    snapshot = Lake.open(plan.lake_uri).at(plan.lake_version)
    pairs = training_pairs(snapshot, plan)
    reader = make_reader(pairs, plan, rank, ranks)
    torch.manual_seed(recipe.seed)
    tokenizer = make_tokenizer(recipe.tokenizer, recipe.context)
    encoder = build_encoder(recipe.encoder_config(tokenizer.vocab_size))
    optimizer = make_optimizer(encoder, recipe)
    checkpoint = ray.train.get_checkpoint()
    start = 0
    if checkpoint is not None:
        start = load_state(checkpoint, encoder, optimizer)
    elif hasattr(encoder, "warm_start"):
        encoder.warm_start(first_pictures(pairs, plan))
    model = prepare_model(encoder)
    move_optimizer(optimizer, device)
    steps = Steps(recipe=recipe, model=model, encoder=encoder, optimizer=optimizer, device=device, rank=rank)

    stop = min(recipe.stop_after or recipe.steps, recipe.steps)
    began = time.perf_counter()
    for batch in reader.batches(start, stop):
        read = {recipe.image_column: batch.image_BHWC, "sentence": tokenizer(batch.sentences)}
        row = steps.run(batch.step, {key: torch.from_numpy(value) for key, value in read.items()})
        now = time.perf_counter()
        row |= {"step": batch.step, "epoch": batch.epoch, "pairs_per_s": recipe.global_batch / (now - began)}
        began = now
        if rank == 0:
            config["board"].post.remote(row)
        done = batch.step + 1
        if done == stop or done % recipe.checkpoint_every == 0:
            report(row, done, encoder, optimizer, rank)


def training_pairs(snapshot: Any, plan: TrainPlan) -> Selection:
    """The pairs that are trained on."""
    sides = dict.fromkeys(plan.slide_ids, BLOCKS if plan.blocks else "train")
    return Selection.of(snapshot, plan.blocks, sides, "train")


def make_reader(pairs: Selection, plan: TrainPlan, rank: int, ranks: int) -> Any:
    """The reader of one worker's slices."""
    from histolake.training.images import Augmentation
    from histolake.training.reading import PairReader

    recipe = plan.recipe
    return PairReader(
        pairs.snapshot,
        pairs,
        image_column=recipe.image_column,
        px=recipe.image_px,
        global_batch=recipe.global_batch,
        seed=recipe.seed,
        rank=rank,
        ranks=ranks,
        augmentation=Augmentation(stain=recipe.stain, density=recipe.density),
        window_rows=recipe.window_rows,
    )


def first_pictures(pairs: Selection, plan: TrainPlan) -> Any:
    """Up to `WARM_START_PICTURES` training pictures, the same on every worker, uint8 (N, px, px, 3)."""
    import torch

    recipe = plan.recipe
    from dataclasses import replace

    size = min(WARM_START_PICTURES, pairs.n_pairs)
    whole = replace(plan, recipe=replace(recipe, global_batch=size))
    return torch.from_numpy(make_reader(pairs, whole, 0, 1).batch(0).image_BHWC)


def make_optimizer(encoder: Any, recipe: Recipe) -> Any:
    """AdamW; weight decay on matrices only, as in CLIP."""
    import torch

    trained = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": recipe.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, recipe.beta2))


class Steps:
    """One optimiser step after another."""

    def __init__(self, *, recipe: Recipe, model: Any, encoder: Any, optimizer: Any, device: Any, rank: int) -> None:
        self._recipe = recipe
        self._model = model
        self._encoder = encoder
        self._optimizer = optimizer
        self._device = device
        self._rank = rank
        self._trained = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
        model.train()

    def run(self, step: int, batch: Mapping[str, Any]) -> dict[str, float]:
        """Take one step on a batch of tensors by input (`inputs`); gives the joined batch's loss, the scale, the
        gradient's norm and the learning rate."""
        import torch
        import torch.distributed as dist

        from histolake.platform.errors import ModelError
        from histolake.training.objectives import info_nce_distributed
        from histolake.training.schedules import warmup_cosine

        recipe = self._recipe
        torch.manual_seed((recipe.seed * 1_000_003 + step) * 4096 + self._rank)
        lr = recipe.lr * warmup_cosine(step, steps=recipe.steps, warmup_steps=recipe.warmup_steps)
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        vectors = self._model({key: value.to(self._device) for key, value in batch.items()})
        scale = vectors["scale"]
        loss = info_nce_distributed(vectors["image"], vectors["text"], scale)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self._trained, recipe.clip_norm)
        self._optimizer.step()
        joined = loss.detach().clone()
        if dist.is_initialized():
            dist.all_reduce(joined)
            joined /= dist.get_world_size()
        if not torch.isfinite(joined):
            raise ModelError(
                f"The loss is not a number at step {step} (learning rate {lr:.2g}); lower lr or raise warmup_steps."
            )
        return {"loss": float(joined), "scale": float(scale.detach()), "grad_norm": float(norm), "lr": lr}


def report(row: dict[str, float], done: int, encoder: Any, optimizer: Any, rank: int) -> None:
    """Hand a checkpoint to Ray Train; every worker calls it, the first one writes."""
    import ray.train
    import torch

    if rank != 0:
        ray.train.report(row)
        return
    with tempfile.TemporaryDirectory() as folder:
        state = {"step": done, "encoder": encoder.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save(state, Path(folder) / CHECKPOINT_FILE)
        ray.train.report(row, checkpoint=ray.train.Checkpoint.from_directory(folder))


def load_state(checkpoint: Any, encoder: Any, optimizer: Any) -> int:
    """Fill in a checkpoint; gives the step to go on with."""
    import torch

    with checkpoint.as_directory() as folder:
        state = torch.load(Path(folder) / CHECKPOINT_FILE, map_location="cpu", weights_only=True)
    encoder.load_state_dict(state["encoder"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])


def move_optimizer(optimizer: Any, device: Any) -> None:
    """Bring the optimiser's state to where its parameters went."""
    import torch

    for state in optimizer.state.values():
        for name, value in state.items():
            if torch.is_tensor(value) and name != "step":
                state[name] = value.to(device)
