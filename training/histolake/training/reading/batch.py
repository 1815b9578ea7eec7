"""One worker's share of a step, as a model takes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from histolake.training.reading.augmentation import Drawn, augment

__all__ = ["Batch"]

PICTURES = ("spot_image", "niche_image")


@dataclass(frozen=True, kw_only=True)
class Batch:
    """B pairs. `tensors` hold each input of the model by its key: pictures uint8 (B, px, px, 3), tokens int64 (B, L),
    profiles and vectors float32 (B, G). A row that lacks an input holds zeros there, and False in `present`, bool (B,),
    which has a key only where some row lacks it."""

    step: int
    epoch: int
    positions_B: np.ndarray  # int64, in the epoch's global sequence
    pair_ids: list[bytes]
    slides_B: torch.Tensor  # int64, the slide's number among those that are read
    ids_B: torch.Tensor  # int64, the first eight bytes of the pair_ids
    tensors: Mapping[str, torch.Tensor]
    present: Mapping[str, torch.Tensor]
    drawn: Drawn | None = None  # what augmentation does to the pictures
    neighbours_BK: torch.Tensor | None = None  # int64, ids of each spot's niche, -1 where there are fewer
    genes_surviving: float = float("nan")  # mean number of a sentence's genes that reach the model

    def to(self, device: torch.device | str) -> Batch:
        """On a device, with the pictures as augmentation has them."""
        tensors = {key: value.to(device, non_blocking=True) for key, value in self.tensors.items()}
        if self.drawn is not None:
            drawn = self.drawn.to(device)
            tensors |= {key: augment(tensors[key], drawn) for key in PICTURES if key in tensors}
        return replace(
            self,
            tensors=tensors,
            present={key: value.to(device, non_blocking=True) for key, value in self.present.items()},
            slides_B=self.slides_B.to(device, non_blocking=True),
            ids_B=self.ids_B.to(device, non_blocking=True),
            neighbours_BK=None if self.neighbours_BK is None else self.neighbours_BK.to(device, non_blocking=True),
            drawn=None,
        )
