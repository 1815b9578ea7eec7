"""One optimiser step after another: forward, objective, backward, clip, update."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from histolake.training.loop.parts import make_objective
from histolake.training.models.base import present_vectors
from histolake.training.objectives import backward, ignore_mask
from histolake.training.objectives.distributed import joined_sum, ranks
from histolake.training.precision import autocast
from histolake.training.reading import Batch
from histolake.training.recipes import Recipe
from histolake.training.schedules import cosine, warmup_cosine

__all__ = ["NotANumberError", "Steps"]


class NotANumberError(ArithmeticError):
    """The joined batch's loss is no number."""


class Steps:
    """The steps of one worker. What is drawn at random in a step (dropout) is seeded by (seed, step, rank)."""

    def __init__(
        self,
        *,
        recipe: Recipe,
        steps: int,
        model: torch.nn.Module,
        encoder: Any,
        optimizer: torch.optim.Optimizer,
        rank: int,
        kin_S: torch.Tensor | None = None,
    ) -> None:
        """`model` is what is called: the encoder, or what distributes it. `kin_S` is the kin of each slide (see
        `ignore_mask`)."""
        self._recipe = recipe
        self._steps = steps
        self._model = model
        self._encoder = encoder
        self._optimizer = optimizer
        self._rank = rank
        self._kin_S = kin_S
        self._objective = make_objective(recipe)
        self._precision = autocast(recipe.precision, next(encoder.parameters()).device)
        self._trained = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
        model.train()

    def run(self, batch: Batch) -> dict[str, float]:
        """Take one step on a batch that is on the model's device; gives the losses of the joined batch, the scale, the
        mean number of negatives, the gradient's norm and the learning rate. Raises `NotANumberError` before anything
        is updated."""
        torch.manual_seed((self._recipe.seed * 1_000_003 + batch.step) * 4096 + self._rank)
        rates = self._set_rates(batch.step)
        self._optimizer.zero_grad(set_to_none=True)
        losses, scale = self._backward(batch)
        norm = torch.nn.utils.clip_grad_norm_(self._trained, self._recipe.clip_norm or float("inf"))
        row = _told(losses, scale=scale, grad_norm=norm)
        if not math.isfinite(row["loss"]):
            raise NotANumberError(
                f"The loss is not a number at step {batch.step} (learning rate {rates['lr']:.2g}); lower lr or raise "
                "warmup_steps."
            )
        self._optimizer.step()
        return {**row, **rates}

    def _set_rates(self, step: int) -> dict[str, float]:
        recipe, steps = self._recipe, self._steps
        floor = recipe.lr_end / recipe.lr
        lr = recipe.lr * warmup_cosine(step, steps=steps, warmup_steps=recipe.warmup_steps, floor=floor)
        decay = recipe.weight_decay
        if recipe.weight_decay_end >= 0:
            decay = cosine(step, steps=steps, first=decay, last=recipe.weight_decay_end)
        for group in self._optimizer.param_groups:
            group["lr"] = lr
            group["weight_decay"] = decay if group["decays"] else 0.0
        return {"lr": lr, "weight_decay": decay}

    def _backward(self, batch: Batch) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """The losses, with their gradients added to the parameters, and the scale."""
        masks: dict[str, Any] = {
            "present": present_vectors(self._encoder.vector_needs, batch.present),
            "ignore_BN": self._ignored(batch),
        }
        rows = len(batch.pair_ids)
        size = self._recipe.chunk_rows
        if size and size < rows:
            cuts = [slice(first, min(first + size, rows)) for first in range(0, rows, size)]
            chunks = [{key: value[cut] for key, value in batch.tensors.items()} for cut in cuts]
            losses = backward(self._model, chunks, self._objective, precision=self._precision, **masks)
            return losses, self._encoder.scale().detach()
        with self._precision():
            vectors: Mapping[str, torch.Tensor] = self._model(batch.tensors)
        losses = self._objective(vectors, batch=batch.tensors, **masks)
        losses["loss"].backward()
        return {name: value.detach() for name, value in losses.items()}, vectors["scale"].detach()

    def _ignored(self, batch: Batch) -> torch.Tensor | None:
        recipe = self._recipe
        if not (recipe.ignore_neighbours or recipe.ignore_kin or recipe.sampling != "pairs"):
            return None  # a batch of an epoch holds no pair twice
        return ignore_mask(
            batch.ids_B,
            neighbours_BK=batch.neighbours_BK if recipe.ignore_neighbours else None,
            slides_B=batch.slides_B if recipe.ignore_kin else None,
            kin_S=self._kin_S if recipe.ignore_kin else None,
        )


def _told(losses: Mapping[str, torch.Tensor], **own: torch.Tensor) -> dict[str, float]:
    """Losses as means over the workers, in one exchange, and what is the same on each; the device is waited for
    once."""
    mean = joined_sum(torch.stack([value.double() for value in losses.values()])) / ranks()
    same = torch.stack([value.detach().double() for value in own.values()])
    return dict(zip((*losses, *own), torch.cat([mean, same]).tolist(), strict=True))
