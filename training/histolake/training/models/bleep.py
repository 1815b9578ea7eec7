"""BLEEP (Xie et al. 2023): pictures and expression through equal projection heads, for retrieval of expression.

An image encoder (a ResNet-50 with ImageNet's weights, trained along) and the profile itself each pass a head: a linear
map, GELU, another linear map with dropout, the first one's answer added, LayerNorm. The loss is CLIP's with smoothed
targets (see objectives/): how alike two pairs are in both modalities says how much of a positive they are.

BLEEP compares the heads' rows as they are; here vectors are unit rows. A row that leaves a LayerNorm of P numbers is
sqrt(P) long while the layer's own weights are as they start, so BLEEP's products at temperature 1 are P times the
cosines: `scale` is P / temperature, and the smoothed targets are to be taken with the same factor. What the layer's
weights learn about length is lost. Sizes are those of the published code: 256, dropout 0.1, temperature 1, 224 px.

Axes: B pairs, G genes, P projection, W width that a head reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from histolake.training.inputs import Input, Picture, Profile
from histolake.training.models.clip_fc import image_tower
from histolake.training.models.picture_profile import PictureProfile

__all__ = ["Bleep", "BleepConfig", "ProjectionHead", "build_bleep"]


@dataclass(frozen=True, kw_only=True)
class BleepConfig:
    """Sizes of both sides; the defaults are the published code's."""

    gene_ids: tuple[int, ...] = ()  # of the lake, in the order in which profiles are read
    embed_dim: int = 256  # P, numbers in a vector
    dropout: float = 0.1  # share, in the heads
    image_encoder: str = "timm:resnet50"  # by name
    image_weights: str = ""  # its file; empty: what its package ships, or the folder of the settings
    train_image: bool = True
    image_column: str = "spot_image"  # or niche_image
    image_px: int = 224  # pixels, width of a picture
    temperature: float = 1.0  # fixed, as there

    def __post_init__(self) -> None:
        object.__setattr__(self, "gene_ids", tuple(int(gene) for gene in self.gene_ids))


class ProjectionHead(nn.Module):
    """(B, W) to (B, P)."""

    def __init__(self, width: int, projection: int, dropout: float) -> None:
        super().__init__()
        self.project = nn.Linear(width, projection)
        self.mix = nn.Linear(projection, projection)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(projection)

    def forward(self, given_BW: torch.Tensor) -> torch.Tensor:
        first_BP = self.project(given_BW.to(self.project.weight.dtype))
        return self.norm(first_BP + self.dropout(self.mix(F.gelu(first_BP))))


class Bleep(PictureProfile):
    """Pictures and profiles as unit rows; the genes' vector goes by the name `text`, as in every CLIP here."""

    scale_value: torch.Tensor

    def __init__(self, config: BleepConfig) -> None:
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
        self.image_head = ProjectionHead(self.image.width, config.embed_dim, config.dropout)
        self.genes_head = ProjectionHead(len(config.gene_ids), config.embed_dim, config.dropout)
        self.register_buffer("scale_value", torch.tensor(config.embed_dim / config.temperature), persistent=False)

    def encode_images(self, image_BHWC: torch.Tensor) -> torch.Tensor:
        """Unit rows (B, P) of uint8 pictures."""
        return F.normalize(self.image_head(self.image(image_BHWC)), dim=-1)

    def encode_profiles(self, profile_BG: torch.Tensor) -> torch.Tensor:
        """Unit rows (B, P) of profiles."""
        return F.normalize(self.genes_head(profile_BG), dim=-1)

    def scale(self) -> torch.Tensor:
        """P / temperature, which is not learned."""
        return self.scale_value


def build_bleep(config: Mapping[str, Any]) -> Bleep:
    """A fresh model of that configuration; the image encoder's weights come with `load_frozen` or a state dict."""
    return Bleep(BleepConfig(**config))
