"""InfoNCE between two towers, as OmiCLIP trains (eq. 1) and as ST-Align prints it.

OmiCLIP prints the sum of both directions; here it is their mean, as in CLIP: a factor of 2 that only rescales the
learning rate. ST-Align (its eq. 9 to 11) leaves the row's own pair out of the denominator: `printed` does so. That form
has no lower bound, and the sum can be negative.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from histolake.training.objectives.base import NO_MASKS, Masks, present_in
from histolake.training.objectives.distributed import first_row, gather_with_gradient
from histolake.training.objectives.scores import Rows, cleared, in_full, mean_negatives, mean_over_rows

__all__ = ["Contrastive", "info_nce"]


@dataclass(frozen=True, kw_only=True)
class Contrastive:
    """Both directions of InfoNCE between two of a model's vectors."""

    image: str = "image"  # names of the vectors
    text: str = "text"
    printed: bool = False  # the row's own pair is no part of the denominator

    def __call__(
        self,
        vectors: Mapping[str, torch.Tensor],
        *,
        present: Masks = NO_MASKS,
        ignore_BN: torch.Tensor | None = None,
        batch: Mapping[str, torch.Tensor] = NO_MASKS,
    ) -> dict[str, torch.Tensor]:
        """See `Objective`. The part is `loss_image_text`."""
        valid_B = present_in(vectors, present, self.image, self.text)
        rows = Rows.of(valid_B, ignore_BN)
        loss = info_nce(vectors[self.image], vectors[self.text], vectors["scale"], rows, printed=self.printed)
        return {"loss": loss, "loss_image_text": loss.detach(), "negatives": mean_negatives(rows)}


def info_nce(
    image_BD: torch.Tensor,
    text_BD: torch.Tensor,
    scale: torch.Tensor,
    rows: Rows,
    *,
    printed: bool = False,
    one_way: bool = False,
) -> torch.Tensor:
    """The mean of both directions, or with `one_way` that from the first to the second alone; a scalar, this process's
    share (see `base`)."""
    with in_full(image_BD.device):
        image_BD, text_BD = cleared(image_BD, rows.valid_B), cleared(text_BD, rows.valid_B)
        loss = _direction(image_BD, text_BD, scale, rows, printed)
        return loss if one_way else (loss + _direction(text_BD, image_BD, scale, rows, printed)) / 2


def _direction(
    query_BD: torch.Tensor, own_BD: torch.Tensor, scale: torch.Tensor, rows: Rows, printed: bool
) -> torch.Tensor:
    scores_BN = scale * query_BD @ gather_with_gradient(own_BD).T
    own_B = scores_BN.diagonal(first_row(len(scores_BN)))  # by place: a mask would make the host wait for the device
    if not printed:
        loss_B = scores_BN.masked_fill(rows.dead_BN, -torch.inf).logsumexp(dim=1) - own_B
        return mean_over_rows(loss_B, rows.valid_B)
    struck_BN = rows.dead_BN | rows.own_BN
    alone_B = struck_BN.all(dim=1)  # such a row has no denominator
    struck_BN = struck_BN & ~alone_B[:, None]
    loss_B = scores_BN.masked_fill(struck_BN, -torch.inf).logsumexp(dim=1) - own_B
    return mean_over_rows(loss_B, rows.valid_B & ~alone_B)
