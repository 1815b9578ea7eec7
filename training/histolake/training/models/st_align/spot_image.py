"""The trainable encoder of spot pictures: a ResNet whose stem leaves small pictures their size.

The usual stem (7x7 at stride 2, then a pooling) would leave 7 x 7 of 28 px before the first block and one pixel after
the last. Here the stem is 3x3 at stride 1 without pooling, so the blocks see 28, 14, 7 and 4 px. The blocks are timm's.

Axes: B pictures, H height, W width, C channels, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from histolake.platform.errors import ModelError
from histolake.training.models.frozen.encoder import resize
from histolake.training.models.frozen.facts import IMAGENET
from histolake.training.models.pointwise import with_strided_pointwise
from histolake.training.torchvision_shim import import_torchvision

__all__ = ["DEPTHS", "SpotImageEncoder"]

# Layers of the network -> is its block a bottleneck, and how many blocks each of the four stages has.
DEPTHS: dict[int, tuple[bool, tuple[int, ...]]] = {
    10: (False, (1, 1, 1, 1)),
    18: (False, (2, 2, 2, 2)),
    50: (True, (3, 4, 6, 3)),
}


class SpotImageEncoder(nn.Module):
    """uint8 (B, H, W, 3) to (B, width); pictures of another width than `px` are resized."""

    mean_C: torch.Tensor
    std_C: torch.Tensor

    def __init__(self, *, px: int = 28, depth: int = 50, base_width: int = 64) -> None:
        super().__init__()
        if depth not in DEPTHS:
            raise ModelError(f"spot_depth is {depth}; it must be one of {', '.join(map(str, DEPTHS))}.")
        import_torchvision()
        from timm.models.resnet import BasicBlock, Bottleneck, ResNet

        bottleneck, blocks = DEPTHS[depth]
        channels = tuple(base_width * 2**stage for stage in range(4))
        block: Any = Bottleneck if bottleneck else BasicBlock  # timm's annotation asks for an instance
        net: Any = ResNet(block, blocks, channels=channels, num_classes=0)
        net.conv1 = nn.Conv2d(3, net.conv1.out_channels, 3, stride=1, padding=1, bias=False)
        nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
        net.maxpool = nn.Identity()
        self.net: Any = with_strided_pointwise(net)
        self.px = px
        self.width = int(net.num_features)
        mean, std = IMAGENET
        self.register_buffer("mean_C", 255 * torch.tensor(mean), persistent=False)
        self.register_buffer("std_C", 255 * torch.tensor(std), persistent=False)

    def forward(self, image_BHWC: torch.Tensor) -> torch.Tensor:
        pixels_BCHW = resize(image_BHWC, self.px, self.net.conv1.weight.dtype)
        return self.net((pixels_BCHW - self.mean_C.view(-1, 1, 1)) / self.std_C.view(-1, 1, 1))
