"""What a recipe's names stand for: the objective and the optimiser."""

from __future__ import annotations

import torch

from histolake.training.objectives import Captioned, Contrastive, Objective, Smoothed, SpotNiche
from histolake.training.recipes import Recipe

__all__ = ["make_objective", "make_optimizer"]

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
