"""BLEEP's objective: what a row should point at is not its own pair alone, but all pairs alike to it.

The targets of a row are the softmax of the mean of its likeness to the others in both modalities (Xie et al. 2023,
section 3; the released code, which this agrees with, lets gradients flow through the targets and does not make the
transposed targets sum to 1).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from histolake.training.objectives.base import NO_MASKS, Masks, present_in
from histolake.training.objectives.distributed import gather_with_gradient
from histolake.training.objectives.scores import Rows, cleared, in_full, mean_negatives, mean_over_rows

__all__ = ["Smoothed"]


@dataclass(frozen=True, kw_only=True)
class Smoothed:
    """Cross-entropy in both directions against smoothed targets."""

    image: str = "image"  # names of the vectors
    text: str = "text"
    # Squared length of the rows that were published: theirs are not of unit length, but end in a LayerNorm, so that it
    # is their width (256). 1 / temperature is then scale / squared_norm.
    squared_norm: float = 1.0

    def __call__(
        self,
        vectors: Mapping[str, torch.Tensor],
        *,
        present: Masks = NO_MASKS,
        ignore_BN: torch.Tensor | None = None,
        batch: Mapping[str, torch.Tensor] = NO_MASKS,
    ) -> dict[str, torch.Tensor]:
        """See `Objective`. `ignore_BN` must be symmetric over the joined batch. The part is `loss_image_text`."""
        rows = Rows.of(present_in(vectors, present, self.image, self.text), ignore_BN)
        with in_full(rows.valid_B.device):
            loss = self._loss(vectors, rows)
        return {"loss": loss, "loss_image_text": loss.detach(), "negatives": mean_negatives(rows)}

    def _loss(self, vectors: Mapping[str, torch.Tensor], rows: Rows) -> torch.Tensor:
        image_BD = cleared(vectors[self.image], rows.valid_B)
        text_BD = cleared(vectors[self.text], rows.valid_B)
        image_ND, text_ND = gather_with_gradient(image_BD), gather_with_gradient(text_BD)
        scale = vectors["scale"]
        sharpness = self.squared_norm**2 / scale  # the targets are multiplied by the temperature, as released
        alike_BN = sharpness * (image_BD @ image_ND.T + text_BD @ text_ND.T) / 2
        alike_BN = alike_BN.masked_fill(rows.dead_BN, -torch.inf)
        norm_B = alike_BN.logsumexp(dim=1)
        norm_N = gather_with_gradient(norm_B[:, None])[:, 0]
        of_text = _cross_entropy(scale * text_BD @ image_ND.T, (alike_BN - norm_B[:, None]).exp(), rows)
        # The transposed targets: how much each other row points at this one.
        of_image = _cross_entropy(scale * image_BD @ text_ND.T, (alike_BN - norm_N[None, :]).exp(), rows)
        return (of_text + of_image) / 2


def _cross_entropy(scores_BN: torch.Tensor, target_BN: torch.Tensor, rows: Rows) -> torch.Tensor:
    log_BN = scores_BN.masked_fill(rows.dead_BN, -torch.inf).log_softmax(dim=1)
    loss_B = -(target_BN * log_BN.masked_fill(rows.dead_BN, 0.0)).sum(dim=1)
    return mean_over_rows(loss_B, rows.valid_B)
