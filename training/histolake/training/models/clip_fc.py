"""CLIP or PLIP with one fully connected layer on each side: the multimodal baseline of ST-Align's tables.

The recipe is STImage-1K4M's: the image tower of a pretrained CLIP and one layer to 32 numbers; the expression of the
genes that are read and one layer to 32 numbers; CLIP's loss. Any encoder of `frozen/` may stand in for the image
tower. The tower is trained along by default; `train_image=False` keeps it as it is.

Axes: B pairs, G genes, D embedding, W width of the image tower's vector.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from histolake.platform.errors import ModelError
from histolake.training.inputs import Input, Picture, Profile
from histolake.training.models.frozen.encoder import FrozenImageEncoder, ImageTower
from histolake.training.models.frozen.facts import facts_of
from histolake.training.models.picture_profile import PictureProfile

__all__ = ["ClipFc", "ClipFcConfig", "build_clip_fc", "image_tower"]


def image_tower(name: str, px: int, *, train: bool) -> ImageTower | FrozenImageEncoder:
    """A pretrained image encoder to be trained along or to stay, seeing `px` where it can, else its own width."""
    facts = facts_of(name)
    if train and facts.library == "lite":
        raise ModelError(f"The image encoder {name!r} is only ever used frozen; set train_image to false.")
    width = px if facts.resizable else None
    return ImageTower(name, px=width) if train else FrozenImageEncoder(name, px=width)


@dataclass(frozen=True, kw_only=True)
class ClipFcConfig:
    """Sizes of both sides."""

    gene_ids: tuple[int, ...] = ()  # of the lake, in the order in which profiles are read
    embed_dim: int = 32  # numbers in a vector
    image_encoder: str = "clip"  # by name: clip, plip, or any of frozen/
    image_weights: str = ""  # its file; empty: what its package ships, or the folder of the settings
    train_image: bool = True
    image_column: str = "spot_image"  # or niche_image
    image_px: int = 224  # pixels, width of a picture
    init_temperature: float = 0.07
    min_temperature: float = 0.01

    def __post_init__(self) -> None:
        object.__setattr__(self, "gene_ids", tuple(int(gene) for gene in self.gene_ids))


class ClipFc(PictureProfile):
    """Pictures and profiles as unit rows; the genes' vector goes by the name `text`, as in every CLIP here."""

    def __init__(self, config: ClipFcConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_dim = config.embed_dim
        self.inputs: tuple[Input, ...] = (
            Picture(column=config.image_column, px=config.image_px),
            Profile(of="niche" if config.image_column == "niche_image" else "spot", gene_ids=config.gene_ids),
        )
        picture, profile = (one.key for one in self.inputs)
        self.vector_needs: Mapping[str, tuple[str, ...]] = {"image": (picture,), "text": (profile,)}
        self.image = image_tower(config.image_encoder, config.image_px, train=config.train_image)
        self.image_fc = nn.Linear(self.image.width, config.embed_dim)
        self.genes_fc = nn.Linear(len(config.gene_ids), config.embed_dim)
        self._max_log_scale = -math.log(config.min_temperature)
        self.log_scale = nn.Parameter(-torch.tensor(config.init_temperature).log())

    def encode_images(self, image_BHWC: torch.Tensor) -> torch.Tensor:
        """Unit rows (B, D) of uint8 pictures."""
        return F.normalize(self.image_fc(self.image(image_BHWC).to(self.image_fc.weight.dtype)), dim=-1)

    def encode_profiles(self, profile_BG: torch.Tensor) -> torch.Tensor:
        """Unit rows (B, D) of profiles."""
        return F.normalize(self.genes_fc(profile_BG.to(self.genes_fc.weight.dtype)), dim=-1)

    def scale(self) -> torch.Tensor:
        """1 / temperature."""
        return self.log_scale.clamp(max=self._max_log_scale).exp()


def build_clip_fc(config: Mapping[str, Any]) -> ClipFc:
    """A fresh model of that configuration; the image tower's weights come with `load_frozen` or a state dict."""
    return ClipFc(ClipFcConfig(**config))
