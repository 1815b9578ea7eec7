"""1x1 convolutions with a stride, such as those beside a ResNet's blocks, computed on the pixels that they keep.

oneDNN, torch's convolutions on a CPU, writes past its workspace when it computes the weights' gradient of such a layer
for pixels in channels-last order (uxlfoundation/oneDNN issue 6035; torch 2.13 crashes in one of three trainings of a
small ResNet). Taking every second pixel first and convolving without a stride is the same sum, and less to read.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

__all__ = ["StridedPointwise", "with_strided_pointwise"]


class StridedPointwise(nn.Conv2d):
    """A 1x1 convolution with a stride; weights and results are `nn.Conv2d`'s."""

    def forward(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        kept_BCHW = pixels_BCHW[:, :, :: self.stride[0], :: self.stride[1]]
        return F.conv2d(kept_BCHW, self.weight, self.bias, groups=self.groups)


def with_strided_pointwise(net: nn.Module) -> nn.Module:
    """The network, with each of its strided 1x1 convolutions computed so; the names of its weights stay."""
    for name, layer in list(net.named_modules()):
        if type(layer) is not nn.Conv2d or layer.kernel_size != (1, 1) or layer.stride == (1, 1):
            continue
        if layer.padding not in ((0, 0), "valid"):
            continue
        instead = StridedPointwise(
            layer.in_channels,
            layer.out_channels,
            1,
            stride=layer.stride,  # type: ignore[arg-type]  # two numbers, which torch's annotation says of any length
            groups=layer.groups,
            bias=layer.bias is not None,
            device="meta",
        )
        instead.weight, instead.bias = layer.weight, layer.bias
        parent, _, child = name.rpartition(".")
        setattr(net.get_submodule(parent), child, instead)
    return net
