"""OmiCLIP: the contrastive half of open_clip's CoCa, at any size of the ViT-L/14 family.

The architecture is open_clip's own class, built from a configuration with the same fields as its `coca_ViT-L-14`; a
state dict of one is a state dict of the other. The caption decoder is part of it, so that published checkpoints fit,
but it is neither run nor trained: OmiCLIP describes the contrastive loss alone, and open_clip's `forward` would
compute the captions even at weight 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from histolake.training.torchvision_shim import import_torchvision

__all__ = ["CocaConfig", "CocaEncoder", "build_coca"]

# Mean and deviation of the pixels that OpenAI's CLIP was trained on; every model of this family expects them.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, kw_only=True)
class CocaConfig:
    """Sizes of the three towers. The defaults are coca_ViT-L-14's."""

    embed_dim: int = 768  # width of a vector
    image_px: int = 224  # pixels, width of the square input
    patch_px: int = 14  # pixels, width of a patch
    image_width: int = 1024
    image_layers: int = 24
    image_head_width: int = 64
    pooler_heads: int = 8
    pooler_queries: int = 256
    text_width: int = 768
    text_heads: int = 12
    text_layers: int = 12
    decoder_layers: int = 12
    context: int = 76  # tokens
    vocab_size: int = 49408
    patch_dropout: float = 0.0  # share of the patches left out of each picture in training
    init_temperature: float = 0.07
    min_temperature: float = 0.01  # CLIP's clamp


class CocaEncoder(nn.Module):
    """open_clip's CoCa as an `Encoder`."""

    mean_C: torch.Tensor
    std_C: torch.Tensor

    def __init__(self, config: CocaConfig) -> None:
        super().__init__()
        import_torchvision()
        from open_clip.coca_model import CoCa

        self.embed_dim = config.embed_dim
        self._max_log_scale = -float(torch.tensor(config.min_temperature).log())
        self.coca: Any = CoCa(
            embed_dim=config.embed_dim,
            vision_cfg={
                "image_size": config.image_px,
                "layers": config.image_layers,
                "width": config.image_width,
                "head_width": config.image_head_width,
                "patch_size": config.patch_px,
                "patch_dropout": config.patch_dropout,
                "attentional_pool": True,
                "attn_pooler_queries": config.pooler_queries,
                "attn_pooler_heads": config.pooler_heads,
                "output_tokens": True,
            },
            text_cfg={
                "context_length": config.context,
                "vocab_size": config.vocab_size,
                "width": config.text_width,
                "heads": config.text_heads,
                "layers": config.text_layers,
                "embed_cls": True,
                "output_tokens": True,
            },
            multimodal_cfg={
                "context_length": config.context,
                "vocab_size": config.vocab_size,
                "width": config.text_width,
                "heads": config.text_heads,
                "layers": config.decoder_layers,
                "attn_pooler_heads": config.text_heads,
            },
            init_logit_scale=-float(torch.tensor(config.init_temperature).log()),
        )
        self.coca.text_decoder.requires_grad_(False)
        self.register_buffer("mean_C", 255 * torch.tensor(CLIP_MEAN), persistent=False)
        self.register_buffer("std_C", 255 * torch.tensor(CLIP_STD), persistent=False)

    def encode_images(self, image_BHWC: torch.Tensor) -> torch.Tensor:
        pixels_BCHW = ((image_BHWC.float() - self.mean_C) / self.std_C).permute(0, 3, 1, 2)
        latent_BD, _ = self.coca.visual(pixels_BCHW)
        return F.normalize(latent_BD, dim=-1)

    def encode_tokens(self, tokens_BL: torch.Tensor) -> torch.Tensor:
        latent_BD, _ = self.coca.text(tokens_BL)
        return F.normalize(latent_BD, dim=-1)

    def scale(self) -> torch.Tensor:
        return self.coca.logit_scale.clamp(max=self._max_log_scale).exp()

    def forward(self, image_BHWC: torch.Tensor, tokens_BL: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Both vectors and the scale."""
        return self.encode_images(image_BHWC), self.encode_tokens(tokens_BL), self.scale()


def build_coca(config: Mapping[str, Any]) -> CocaEncoder:
    """A fresh model of that configuration, weights drawn from torch's generator."""
    return CocaEncoder(CocaConfig(**config))
