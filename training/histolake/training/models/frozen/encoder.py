"""A pretrained image encoder in use: pictures as they are stored in, vectors out.

`ImageTower` is the network with its own preprocessing and its weight file; `FrozenImageEncoder` is one that nothing
may change: always in evaluation, no gradients.

A frozen encoder's weights are part of a model's state, so that a model's folder is complete; gated ones are not (their
owners forbid handing them on): they are left out of every state dict, the model's card keeps the digest of the file
instead, and whoever loads the model names the same file.

Axes: B pictures, H height, W width, C channels, D width, T tokens.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from histolake.platform.errors import ModelError
from histolake.training.models.frozen.checkpoints import load_checkpoint
from histolake.training.models.frozen.facts import facts_of
from histolake.training.models.frozen.towers import build_net
from histolake.training.models.frozen.weights import RANDOM, file_digest, find_weights
from histolake.training.models.pointwise import with_strided_pointwise

__all__ = ["FrozenImageEncoder", "ImageTower", "resize"]


def resize(image_BHWC: torch.Tensor, px: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Pixels (B, C, px, px) in 0 to 255, antialiased bicubic where the width differs."""
    pixels_BCHW = image_BHWC.to(dtype).permute(0, 3, 1, 2)
    if pixels_BCHW.shape[-2:] == (px, px):
        return pixels_BCHW
    return F.interpolate(pixels_BCHW, size=(px, px), mode="bicubic", antialias=True).clamp(0, 255)


class ImageTower(nn.Module):
    """A named encoder's network: uint8 (B, H, W, 3) to (B, width). It has no weights until it is given some."""

    mean_C: torch.Tensor
    std_C: torch.Tensor

    def __init__(self, name: str, *, px: int | None = None) -> None:
        super().__init__()
        self.facts = facts_of(name)
        self.px = px or self.facts.px
        self.width = self.facts.width
        self.digest = ""  # SHA-256 of the weight file
        self.loaded = False
        self.refilled = False  # the last state dict was without this tower, which kept what it had
        self.net = with_strided_pointwise(build_net(self.facts, px))
        mean, std = self.facts.normalisation
        self.register_buffer("mean_C", 255 * torch.tensor(mean), persistent=False)
        self.register_buffer("std_C", 255 * torch.tensor(std), persistent=False)
        self.register_load_state_dict_post_hook(_mark_loaded)

    def load_weights(self, weights: str | Path = "") -> None:
        """Fill the network: from `weights`, else from what its package ships, else from the folder of the settings.

        `"random"` keeps the weights that it was built with, to measure speed and memory with.
        """
        path = self.require_weights(weights)
        if weights == RANDOM:
            self.digest = RANDOM
        elif path is None:
            self.net.load_imagenet()  # type: ignore[operator]  # a LiteTrunk, which mypy knows as a Module
        else:
            load_checkpoint(self.net, self.facts, path)
            self.digest = file_digest(path)
        self.loaded = True

    def require_weights(self, weights: str | Path = "") -> Path | None:
        """The file that `load_weights` would read, None where it needs none; raises `ModelError` where it is not
        there."""
        if weights == RANDOM or (self.facts.library == "lite" and not weights):
            return None
        return find_weights(self.facts, weights)

    def forward(self, image_BHWC: torch.Tensor) -> torch.Tensor:
        if not self.loaded:
            raise ModelError(
                f"The image encoder {self.facts.name!r} has no weights yet; give it some before it is used."
            )
        dtype = next((p.dtype for p in self.net.parameters()), torch.float32)
        pixels_BCHW = resize(image_BHWC, self.px, dtype)
        if self.facts.library == "lite":  # normalises by itself
            return self.net(pixels_BCHW.permute(0, 2, 3, 1))
        out = self.net((pixels_BCHW - self.mean_C.view(-1, 1, 1)) / self.std_C.view(-1, 1, 1))
        if self.facts.pooling == "token+patches":
            return torch.cat([out[:, 0], out[:, self.facts.prefix_tokens :].mean(dim=1)], dim=-1)
        return out


def _mark_loaded(tower: ImageTower, incompatible: Any) -> None:
    tower.loaded = tower.loaded or not tower.refilled


class FrozenImageEncoder(nn.Module):
    """An `ImageTower` that stays as it is: uint8 (B, H, W, 3) to (B, width), without gradients."""

    def __init__(self, name: str, *, px: int | None = None) -> None:
        super().__init__()
        self.tower = ImageTower(name, px=px)
        self.width = self.tower.width
        self.name = name
        self.requires_grad_(False)
        self.eval()
        if self.withheld:
            self.register_state_dict_post_hook(_leave_out)
            self.register_load_state_dict_pre_hook(_fill_in)

    @classmethod
    def load(cls, name: str, weights: str | Path = "", *, px: int | None = None) -> FrozenImageEncoder:
        """The named encoder with its weights. Raises `ModelError` where they are not there or do not fit."""
        encoder = cls(name, px=px)
        encoder.load_weights(weights)
        return encoder

    @property
    def withheld(self) -> bool:
        """Whether its weights stay out of every state dict."""
        return self.tower.facts.gated

    @property
    def digest(self) -> str:
        """SHA-256 of the weight file, empty before one was read."""
        return self.tower.digest

    def load_weights(self, weights: str | Path = "") -> None:
        """See `ImageTower.load_weights`."""
        self.tower.load_weights(weights)

    def train(self, mode: bool = True) -> FrozenImageEncoder:
        """Stays in evaluation: dropout is off, and batch statistics are those of its weights."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, image_BHWC: torch.Tensor) -> torch.Tensor:
        return self.tower(image_BHWC)


def _leave_out(encoder: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    for name in [name for name in state if name.startswith(f"{prefix}tower.")]:
        del state[name]


def _fill_in(
    encoder: nn.Module, state: dict[str, Any], prefix: str, metadata: Any, strict: bool, *problems: list[str]
) -> None:
    """Put the encoder's own tensors where a state dict was written without them, so that loading stays strict."""
    assert isinstance(encoder, FrozenImageEncoder)
    encoder.tower.refilled = not any(name.startswith(f"{prefix}tower.") for name in state)
    if encoder.tower.refilled:
        state.update({f"{prefix}tower.net.{name}": own for name, own in encoder.tower.net.state_dict().items()})
