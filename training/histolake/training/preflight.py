"""What would only fail in the workers, tried once on the driver before they start.

The model is built on meta tensors, which have shapes and no numbers, so that this takes a second for the largest too.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from histolake.platform.errors import ModelError, UsageError
from histolake.platform.storage import Location
from histolake.training.loop.plan import TrainPlan

if TYPE_CHECKING:
    from histolake.platform.splits import Selection
    from histolake.training.tokenizers import Tokenizer

__all__ = ["build_on_meta", "try_out"]

ADAM_MOMENTS = 2  # that a checkpoint keeps beside each trained weight


def try_out(plan: TrainPlan, pairs: Selection) -> None:
    """Raise `ModelError`, `UsageError` or `IntegrityError`, in one sentence, for a model that cannot be built, frozen
    encoders without their weights, weights to start from that do not fit, a feed that does not hold what the model
    reads, and a disk without room for the checkpoints."""
    from histolake.training.loop.feeds import make_feed, make_reader
    from histolake.training.models.frozen.encoder import ImageTower

    tokenizer = plan.tokenizer()
    encoder = build_on_meta(plan.model_config(tokenizer))
    for tower in encoder.modules():
        if isinstance(tower, ImageTower):
            tower.require_weights(encoder.config.image_weights)
    if not any(weight.requires_grad for weight in encoder.parameters()):
        raise UsageError(
            f"Nothing of the recipe {plan.recipe.name} is trained as its model is set; leave a part to train."
        )
    if plan.weights:
        _try_weights(plan, tokenizer)
    if plan.recipe.feed == "shards":
        _require_same_pairs(make_feed(pairs, plan, encoder.inputs, tokenizer, 0, plan.workers), pairs, plan)
    else:  # opens the tables that the model reads, and no pair
        make_reader(pairs, plan, encoder.inputs, tokenizer, 0, plan.workers, global_batch=plan.recipe.global_batch)
    _require_room(plan, encoder)


def build_on_meta(config: dict[str, Any]) -> Any:
    """An encoder of shapes alone."""
    import torch

    from histolake.training.models import build_encoder

    with torch.device("meta"):
        return build_encoder(config)


def _try_weights(plan: TrainPlan, tokenizer: Tokenizer) -> None:
    from histolake.training.loop.start import start_from
    from histolake.training.models import build_encoder

    start_from(plan.weights, build_encoder(plan.model_config(tokenizer)), tokenizer)


def _require_same_pairs(reader: Any, pairs: Selection, plan: TrainPlan) -> None:
    """The export holds the training side and nothing else: what the run says it was trained on is then true."""
    recipe, manifest = plan.recipe, reader.manifest
    if plan.blocks is not None:
        raise UsageError(
            "Shards hold whole slides, and the split trains on blocks of them; leave out --set feed=shards."
        )
    known = {row["slide_id"]: row["ingest_id"] for row in pairs.snapshot.slides().to_pylist()}
    wanted = {known[slide_id] for slide_id in pairs.slide_ids}
    if wanted != set(manifest.ingest_ids):
        raise UsageError(
            f"The shards of {recipe.shards} hold {len(manifest.slide_ids)} slides as of lake version "
            f"{manifest.lake_version}, and the run trains on {len(wanted)} as of version {plan.lake_version}, of which "
            f"{len(wanted & set(manifest.ingest_ids))} are the same; export the slides that train "
            "(`histolake export --slide`, `--where`), or train on those of the shards."
        )


def _require_room(plan: TrainPlan, encoder: Any) -> None:
    """Room for the checkpoints that are kept and the one being made, where the storage is this machine's disk."""
    place = Location.parse(plan.storage)
    if place.is_remote:
        return
    weights = list(encoder.parameters())
    state = sum(each.numel() * each.element_size() * (1 + ADAM_MOMENTS * each.requires_grad) for each in weights)
    folders = {Path(place.uri): plan.recipe.keep + 1, Path(tempfile.gettempdir()): 1}
    for folder, count in folders.items():
        there = next(parent for parent in [folder, *folder.absolute().parents] if parent.exists())
        free = shutil.disk_usage(there).free
        if free < count * state:
            raise ModelError(
                f"{count} checkpoints of {state / 1e9:.1f} GB do not fit into the {free / 1e9:.1f} GB that are free at "
                f"{folder}; make room, or name another --storage (or TMPDIR, where they are made)."
            )
