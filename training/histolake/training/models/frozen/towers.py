"""The networks of the pretrained encoders, built empty from their facts by the package that knows the architecture.

Each is an `nn.Module` from normalised pixels (B, C, H, W) to vectors (B, width), or to tokens where `pooling` says so.
Two architectures are in no package and are put together here: CONCH's image tower (a ViT whose tokens one learned query
pools) and CTransPath (a Swin whose patches come from three convolutions).

Axes: B pictures, C channels, H height, W width, T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from histolake.platform.errors import ModelError
from histolake.training.models.frozen.facts import EncoderFacts
from histolake.training.torchvision_shim import import_torchvision

__all__ = ["build_net"]


def build_net(facts: EncoderFacts, px: int | None = None) -> nn.Module:
    """The encoder's network with fresh weights, for pictures `px` wide (its own width by default)."""
    if px not in (None, facts.px) and not facts.resizable:
        raise ModelError(f"The image encoder {facts.name!r} sees {facts.px} px and nothing else, not {px} px.")
    import_torchvision()
    return _BUILDERS[facts.library](facts, px or facts.px)


def _timm(facts: EncoderFacts, px: int) -> nn.Module:
    import timm
    from timm import layers

    arguments = dict(facts.arguments)
    for key, home in (("mlp_layer", layers), ("act_layer", nn)):
        if key in arguments:
            arguments[key] = getattr(home, arguments[key])
    known = timm.models.get_pretrained_cfg(facts.architecture)
    if px != facts.px and known is not None and known.fixed_input_size and not arguments.get("dynamic_img_size"):
        arguments["img_size"] = px
    net: nn.Module = timm.create_model(facts.architecture, pretrained=False, **arguments)
    return net


def _open_clip(facts: EncoderFacts, px: int) -> nn.Module:
    import open_clip
    from open_clip.model import _build_vision_tower

    config = open_clip.get_model_config(facts.architecture)
    vision = {**config["vision_cfg"], "output_tokens": False}
    vision.pop("timm_model_pretrained", None)
    net: nn.Module = _build_vision_tower(
        config["embed_dim"], {**vision, "timm_model_pretrained": False}, config.get("quick_gelu", False)
    )
    return net


def _lite(facts: EncoderFacts, px: int) -> nn.Module:
    from histolake.training.models.clip_lite import LiteTrunk

    return LiteTrunk()


class ConchVisual(nn.Module):
    """CONCH's image tower up to its contrastive pooling (its `encode_image` without projection)."""

    def __init__(self, px: int, width: int) -> None:
        super().__init__()
        from open_clip.transformer import AttentionalPooler
        from timm.models.vision_transformer import VisionTransformer

        self.trunk: Any = VisionTransformer(img_size=px, patch_size=16, num_classes=0, dynamic_img_size=True)
        self.attn_pool_contrast = AttentionalPooler(width, self.trunk.embed_dim, n_head=8, n_queries=1)
        self.ln_contrast = nn.LayerNorm(width)

    def forward(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        tokens_BTD = self.trunk.forward_features(pixels_BCHW)
        return self.ln_contrast(self.attn_pool_contrast(tokens_BTD)[:, 0])


def _conch(facts: EncoderFacts, px: int) -> nn.Module:
    return ConchVisual(px, facts.width)


class ConvStem(nn.Module):
    """Patches of 4 px by convolutions: CTransPath's replacement of the Swin's patch embedding."""

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 4,
        in_chans: int = 3,
        embed_dim: int = 96,
        norm_layer: Callable[[int], nn.Module] | None = None,
        **layout: Any,  # timm's keywords about strictness and layout; patches leave here as (B, H, W, D)
    ) -> None:
        super().__init__()
        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
        self.grid_size = (height // patch_size, width // patch_size)
        narrow, middle = embed_dim // 8, embed_dim // 4
        self.proj = nn.Sequential(
            nn.Conv2d(in_chans, narrow, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(narrow),
            nn.ReLU(),
            nn.Conv2d(narrow, middle, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(middle),
            nn.ReLU(),
            nn.Conv2d(middle, embed_dim, 1),
        )
        self.norm = norm_layer(embed_dim) if norm_layer else nn.Identity()

    def forward(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        return self.norm(self.proj(pixels_BCHW).permute(0, 2, 3, 1))


def _ctranspath(facts: EncoderFacts, px: int) -> nn.Module:
    import timm

    net: nn.Module = timm.create_model(facts.architecture, pretrained=False, num_classes=0, embed_layer=ConvStem)
    return net


_BUILDERS: dict[str, Callable[[EncoderFacts, int], nn.Module]] = {
    "timm": _timm,
    "open_clip": _open_clip,
    "lite": _lite,
    "conch": _conch,
    "ctranspath": _ctranspath,
}
