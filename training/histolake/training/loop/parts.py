"""What a recipe's names stand for: the objective, the optimiser, the reader of a worker."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from histolake.training.inputs import Input, Picture, Sentence
from histolake.training.loop.plan import TrainPlan
from histolake.training.objectives import Captioned, Contrastive, Objective, Smoothed, SpotNiche
from histolake.training.reading import Augmentation, PairReader, ReadOptions
from histolake.training.recipes import Recipe

if TYPE_CHECKING:
    from histolake.platform.splits import Selection
    from histolake.training.tokenizers import Tokenizer

__all__ = ["first_pictures", "make_objective", "make_optimizer", "make_reader"]

WARM_START_PICTURES = 256
_KINDS = {"contrastive": Contrastive, "smoothed": Smoothed, "spot-niche": SpotNiche}


def make_objective(recipe: Recipe) -> Objective:
    """The recipe's objective; with captions where its model is asked for them."""
    values = dict(recipe.objective)
    objective: Objective = _KINDS[values.pop("kind")](**values)
    weight = float(recipe.model.get("caption_weight", 0))
    return Captioned(weight=weight, contrastive=objective) if weight else objective


def make_optimizer(encoder: torch.nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW; weight decay on matrices only, as in CLIP."""
    trained = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": recipe.weight_decay, "decays": True},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0, "decays": False},
    ]
    return torch.optim.AdamW(
        groups,
        lr=recipe.lr,
        betas=(recipe.beta1, recipe.beta2),
        eps=recipe.eps,
        fused=torch.cuda.is_available() or None,
    )


def make_reader(
    pairs: Selection,
    plan: TrainPlan,
    inputs: Sequence[Input],
    tokenizer: Tokenizer | None,
    rank: int,
    ranks: int,
    **options: Any,
) -> PairReader:
    """The reader of one worker's slices. `options` replace those of the recipe, and go without augmentation."""
    recipe = plan.recipe
    chosen: dict[str, Any] = {
        "seed": recipe.seed,
        "global_batch": recipe.global_batch,
        "sampling": recipe.sampling,
        "window_rows": recipe.window_rows,
        "decoders": recipe.decoders or max(1, (os.cpu_count() or 1) // (2 * ranks)),
        "neighbours": recipe.ignore_neighbours,
        "pinned": torch.cuda.is_available(),
    }
    return PairReader(
        pairs,
        inputs,
        ReadOptions(**(chosen | options)),
        tokenizers={each.key: tokenizer for each in inputs if isinstance(each, Sentence)},
        augmentation=None if options else Augmentation(flips=recipe.flips, stain=recipe.stain, density=recipe.density),
        rank=rank,
        ranks=ranks,
    )


def first_pictures(pairs: Selection, plan: TrainPlan, inputs: Sequence[Input]) -> torch.Tensor:
    """Up to `WARM_START_PICTURES` training pictures, the same on every worker, uint8 (N, px, px, 3)."""
    picture = next(each for each in inputs if isinstance(each, Picture))
    size = min(WARM_START_PICTURES, pairs.n_pairs)
    reader = make_reader(pairs, plan, (picture,), None, 0, 1, global_batch=size, sampling="pairs", neighbours=False)
    return reader.batch(0).tensors[picture.key]
