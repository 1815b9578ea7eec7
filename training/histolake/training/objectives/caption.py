"""CoCa's caption loss beside a contrastive one (Yu et al. 2022, eq. 2 to 4): the sentence, token by token, from the
picture and the tokens before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch.nn import functional as F  # noqa: N812

from histolake.platform.errors import UsageError
from histolake.training.objectives.base import NO_MASKS, Masks, Objective, present_in
from histolake.training.objectives.contrastive import Contrastive
from histolake.training.objectives.distributed import joined_sum, ranks

__all__ = ["Captioned"]

PAD = 0  # the token that stands where a sentence is over


@dataclass(frozen=True, kw_only=True)
class Captioned:
    """A contrastive loss and `weight` times the caption loss, which is not computed at weight 0."""

    weight: float
    contrastive: Objective = field(default_factory=Contrastive)
    sentence: str = "sentence"  # the key of the tokens

    def __post_init__(self) -> None:
        if not self.weight >= 0:
            raise UsageError(f"The weight of the caption loss is {self.weight:g}; it must be 0 or more.")

    def __call__(
        self,
        vectors: Mapping[str, torch.Tensor],
        *,
        present: Masks = NO_MASKS,
        ignore_BN: torch.Tensor | None = None,
        batch: Mapping[str, torch.Tensor] = NO_MASKS,
    ) -> dict[str, torch.Tensor]:
        """See `Objective`. Needs `caption_logits` (B, L, V), where position t is about token t + 1, and the tokens. The
        part is `loss_caption`: the mean over all tokens of the joined batch that are no padding."""
        losses = self.contrastive(vectors, present=present, ignore_BN=ignore_BN, batch=batch)
        if self.weight == 0:
            return losses
        valid_B = present_in(vectors, present, "caption_logits")
        logits_BLV, next_BL = vectors["caption_logits"][:, :-1], batch[self.sentence][:, 1:]
        wanted_BL = torch.where(valid_B[:, None], next_BL, PAD)
        full = logits_BLV.float() if logits_BLV.dtype in (torch.float16, torch.bfloat16) else logits_BLV
        wrong = F.cross_entropy(full.flatten(0, 1), wanted_BL.flatten(), ignore_index=PAD, reduction="sum")
        tokens = joined_sum((wanted_BL != PAD).sum()).clamp(min=1)
        caption = wrong * ranks() / tokens
        return {**losses, "loss": losses["loss"] + self.weight * caption, "loss_caption": caption.detach()}
