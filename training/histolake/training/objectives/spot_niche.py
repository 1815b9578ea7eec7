"""ST-Align's three losses (eq. 9 to 12): image and genes of the spot, of the niche, and the fused spot to its niche."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from histolake.platform.errors import UsageError
from histolake.training.objectives.base import NO_MASKS, Masks, present_in
from histolake.training.objectives.contrastive import info_nce
from histolake.training.objectives.scores import Rows, mean_negatives

__all__ = ["SpotNiche"]


@dataclass(frozen=True, kw_only=True)
class SpotNiche:
    """L = spot L_CL(spot) + niche L_CL(niche) + (1 - spot - niche) L_NS. A loss of weight 0 is not computed.

    The paper gives no weights; its released code has 0.3, 0.3 and so 0.4. Both levels are contrasted in both
    directions; the last one from the spot to the niche alone, as printed.
    """

    spot: float = 0.3  # weights, none negative, together at most 1
    niche: float = 0.3
    printed: bool = False  # the row's own pair is no part of the denominators (see `contrastive`)

    def __post_init__(self) -> None:
        if not (self.spot >= 0 and self.niche >= 0 and self.spot + self.niche <= 1 + 1e-9):
            raise UsageError(
                f"The weights of the losses of spot and niche are {self.spot:g} and {self.niche:g}; neither may be "
                "negative, nor both together more than 1."
            )

    def __call__(
        self,
        vectors: Mapping[str, torch.Tensor],
        *,
        present: Masks = NO_MASKS,
        ignore_BN: torch.Tensor | None = None,
        batch: Mapping[str, torch.Tensor] = NO_MASKS,
    ) -> dict[str, torch.Tensor]:
        """See `Objective`. The parts are `loss_spot`, `loss_niche` and `loss_spot_niche`."""
        between = round(1 - self.spot - self.niche, 9)
        parts = (
            ("loss_spot", self.spot, "spot_image", "spot_genes", False),
            ("loss_niche", self.niche, "niche_image", "niche_genes", False),
            ("loss_spot_niche", between, "spot", "niche", True),
        )
        losses: dict[str, torch.Tensor] = {}
        total, negatives = vectors["scale"] * 0, []
        for name, weight, one, other, one_way in parts:
            if weight == 0:
                continue
            rows = Rows.of(present_in(vectors, present, one, other), ignore_BN)
            loss = info_nce(vectors[one], vectors[other], vectors["scale"], rows, printed=self.printed, one_way=one_way)
            losses[name] = loss.detach()
            negatives.append(mean_negatives(rows))
            total = total + weight * loss
        return {"loss": total, **losses, "negatives": torch.stack(negatives).mean()}
