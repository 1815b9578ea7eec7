"""What models of a picture and a profile share: which vectors of a batch are made, and the image tower's file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from histolake.training.models.frozen.encoder import FrozenImageEncoder

__all__ = ["PictureProfile"]


class PictureProfile(nn.Module, ABC):
    """An image tower, by name, beside a tower of profiles; the genes' vector goes by the name `text`, as in every CLIP
    here."""

    config: Any  # its `image_weights` names the image tower's file
    image: Any  # an ImageTower or a FrozenImageEncoder
    vector_needs: Mapping[str, tuple[str, ...]]  # `image` of the picture, `text` of the profile

    @abstractmethod
    def encode_images(self, image_BHWC: torch.Tensor) -> torch.Tensor:
        """Unit rows (B, D) of uint8 pictures."""

    @abstractmethod
    def encode_profiles(self, profile_BG: torch.Tensor) -> torch.Tensor:
        """Unit rows (B, D) of profiles."""

    @abstractmethod
    def scale(self) -> torch.Tensor:
        """1 / temperature."""

    @property
    def frozen(self) -> Mapping[str, FrozenImageEncoder]:
        """The frozen encoder by the field of the configuration that names its file."""
        return {"image_weights": self.image} if isinstance(self.image, FrozenImageEncoder) else {}

    def load_frozen(self, files: Mapping[str, str] | None = None) -> None:
        """Give the image tower the weights that it starts with."""
        self.image.load_weights((files or {}).get("image_weights") or self.config.image_weights)

    def forward(self, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Unit rows `image` and `text` of what is in the batch, and `scale`."""
        out = {"scale": self.scale()}
        encode = {"image": self.encode_images, "text": self.encode_profiles}
        for name, (key,) in self.vector_needs.items():
            if key in batch:
                out[name] = encode[name](batch[key])
        return out
