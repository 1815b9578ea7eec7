"""A recipe: what is trained, on what, towards what, for how long. A short record, not a thousand flags."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from histolake.platform.errors import UsageError

__all__ = ["FEEDS", "OBJECTIVES", "PRECISIONS", "Recipe", "checked"]

FEEDS = ("lake", "ray", "shards")
OBJECTIVES = ("contrastive", "smoothed", "spot-niche")
PRECISIONS = ("float32", "tf32", "bf16")
DEFAULT_CONTEXT = 76  # tokens, of models that do not say


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One way to train one model."""

    name: str
    summary: str  # one line for `histolake recipes`
    model: Mapping[str, Any]  # "architecture", and that architecture's configuration
    objective: Mapping[str, Any] = field(default_factory=lambda: {"kind": "contrastive"})  # and its own values
    weights: str = ""  # where training starts from: a checkpoint file as its authors publish it, or a model
    # What is read.
    image_column: str = "niche_image"  # spot_image | niche_image
    tokenizer: str = "bpe"  # bpe | gene, of models that read sentences
    genes: int = 2000  # most variable genes of the training side, of models that read profiles
    sampling: str = "pairs"  # pairs: each once an epoch; slides, organs, technologies, studies: each alike often
    flips: bool = True  # augmentation: flips and quarter turns
    stain: float = 0.0  # augmentation: standard deviation of the log gain of each stain
    density: float = 0.0  # augmentation: relative standard deviation of the whole optical density
    window_rows: int = 4096  # rows that are shuffled among themselves
    decoders: int = 0  # threads that decode in each worker; 0 takes the cores that the model leaves
    feed: str = "lake"  # who reads: lake (the worker itself), ray (actors on any machine), shards (of an export)
    feed_workers: int = 2  # of feed=ray: actors that decode for each worker
    feed_slot: str = ""  # of feed=ray: a resource of Ray that machines for decoding offer; empty takes any machine
    shards: str = ""  # of feed=shards: the export's folder or URL
    # For how long, in which steps.
    steps: int = 200  # optimiser steps
    epochs: float = 0.0  # through the training pairs, in place of steps; 0 takes the steps
    global_batch: int = 64  # pairs a step, over all workers
    chunk_rows: int = 0  # pairs of a worker that go through the model at once, by gradient caching; 0 takes all
    lr: float = 1e-3  # peak learning rate
    lr_end: float = 0.0  # learning rate at the last step
    warmup_steps: int = 10
    weight_decay: float = 0.1  # AdamW's, on matrices only
    weight_decay_end: float = -1.0  # at the last step, by a cosine; below 0 it stays as it is
    beta1: float = 0.9  # AdamW's first moment
    beta2: float = 0.98  # AdamW's second moment
    eps: float = 1e-8  # AdamW's
    clip_norm: float = 1.0  # largest norm of the gradient; 0 does not clip
    ignore_neighbours: bool = False  # a spot's neighbours are no negatives of it
    ignore_kin: bool = False  # nor are the spots of a section that looks like its own
    # How it is computed.
    precision: str = "float32"  # float32 | tf32 | bf16
    compile: str = "off"  # off | layers | whole: what torch.compile is given
    deterministic: bool = True  # algorithms that give the same bits each time
    threads: int = 0  # of torch in each worker; 0 divides the machine's cores among the workers
    seed: int = 0
    # What is kept and looked at on the way.
    checkpoint_every: int = 100  # steps
    keep: int = 2  # checkpoints: the last, and the best where the validation side is looked at
    validate_every: int = 0  # steps between looks at the validation side; 0 looks at the end alone
    validate_pairs: int = 2048  # of the validation side, for these looks
    publish: str = "last"  # last | best: which checkpoint becomes the model
    stop_after: int = 0  # steps after which a run ends early, to be resumed; 0 goes through

    @property
    def context(self) -> int:
        """Tokens of a sentence that the model reads."""
        return int(self.model.get("context", DEFAULT_CONTEXT))


# Values that have a least one.
_LEAST = {
    "steps": 1,
    "epochs": 0,
    "global_batch": 2,
    "chunk_rows": 0,
    "warmup_steps": 0,
    "checkpoint_every": 1,
    "keep": 1,
    "validate_every": 0,
    "validate_pairs": 2,
    "window_rows": 1,
    "genes": 1,
    "seed": 0,
    "decoders": 0,
    "feed_workers": 1,
    "clip_norm": 0,
}
# Values that are one of a few words.
_WORDS = {
    "image_column": ("spot_image", "niche_image"),
    "sampling": ("pairs", "slides", "organs", "technologies", "studies"),
    "feed": FEEDS,
    "precision": PRECISIONS,
    "publish": ("last", "best"),
    "compile": ("off", "layers", "whole"),
}


def checked(recipe: Recipe) -> Recipe:
    """The recipe, if its values can be; raises `UsageError` that lists all that cannot."""
    faults = [
        f"{name} is {getattr(recipe, name)} and must be at least {least}"
        for name, least in _LEAST.items()
        if getattr(recipe, name) < least
    ]
    faults += [
        f"{name} is {getattr(recipe, name)!r} and must be {' or '.join(words)}"
        for name, words in _WORDS.items()
        if getattr(recipe, name) not in words
    ]
    if recipe.objective.get("kind") not in OBJECTIVES:
        faults.append(f"objective.kind is {recipe.objective.get('kind')!r} and must be {' or '.join(OBJECTIVES)}")
    if recipe.publish == "best" and not recipe.validate_every:
        faults.append("publish is 'best', so validate_every must say how often the validation side is looked at")
    if (recipe.feed == "shards") != bool(recipe.shards):
        faults.append("feed=shards and shards=FOLDER (or its URL) go together")
    if faults:
        raise UsageError(f"The recipe {recipe.name} cannot be used: {'; '.join(faults)}.")
    return recipe
