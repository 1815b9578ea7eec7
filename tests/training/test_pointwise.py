"""Strided 1x1 convolutions are computed without oneDNN's strided kernel, with the same numbers."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from histolake.training.models.pointwise import StridedPointwise, with_strided_pointwise
from histolake.training.models.st_align.spot_image import SpotImageEncoder

# Many small layers, and memory handed out between them, so that what is written past an end is soon stepped on.
TRAINING = """
import torch
from histolake.training.models.pointwise import StridedPointwise
for turn in range(40):
    for channels, size in ((32, 3), (16, 7), (8, 14), (8, 28), (4, 32)):
        pixels = torch.randn(5, channels, size, size).to(memory_format=torch.channels_last)
        StridedPointwise(channels, 16, 1, stride=2, bias=False)(pixels).sum().backward()
        others = [torch.randn(17 * n) for n in range(1, 40)]
print("whole")
"""


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("size", [7, 8])
def test_numbers_are_those_of_the_convolution(size: int, bias: bool) -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(6, 4, 1, stride=2, bias=bias)).double()
    ours = with_strided_pointwise(nn.Sequential(nn.Conv2d(6, 4, 1, stride=2, bias=bias)).double())
    ours.load_state_dict(plain.state_dict())
    assert isinstance(ours[0], StridedPointwise)
    pixels = torch.randn(3, 6, size, size, dtype=torch.float64)
    outcomes = []
    for net in (plain, ours):
        given = pixels.clone().requires_grad_()
        out = net(given)
        (out**2).sum().backward()
        outcomes.append([out.detach(), given.grad, *(parameter.grad for parameter in net.parameters())])
    for found, want in zip(*outcomes, strict=True):
        torch.testing.assert_close(found, want, rtol=1e-12, atol=1e-12)


def test_the_spots_encoder_has_none_left_and_keeps_its_names() -> None:
    for depth in (10, 50):
        encoder = SpotImageEncoder(depth=depth, base_width=8)
        strided = [m for m in encoder.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1)]
        assert [m for m in strided if m.stride != (1, 1)], "there are such layers"
        assert all(isinstance(m, StridedPointwise) for m in strided if m.stride != (1, 1))
        assert "net.layer2.0.downsample.0.weight" in encoder.state_dict()
        assert all(parameter.device.type == "cpu" for parameter in encoder.parameters())


def test_training_them_leaves_memory_whole() -> None:
    done = subprocess.run([sys.executable, "-c", TRAINING], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "whole\n"), done.stderr[-500:]
