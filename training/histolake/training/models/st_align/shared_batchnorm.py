"""Batch statistics over all processes, on any backend.

torch's `SyncBatchNorm` does it on GPUs and refuses CPUs. `SharedBatchNorm2d` does it with two plain sums over the
processes (values, then squares about the joined mean), so that a run on CPU workers has the statistics, and the
gradients, of one process on the joined batch. Slower than torch's; use that one where there are GPUs.

Gradients follow the rule of the objectives: each process differentiates its own share of the loss, a sum over
processes passes the sum of their gradients back, and DistributedDataParallel takes the mean.

Axes: B pictures, C channels, H height, W width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import nn

__all__ = ["SharedBatchNorm2d", "share_batchnorm"]


class _Sum(torch.autograd.Function):
    """The sum over the processes; the gradient is summed over them too."""

    @staticmethod
    def forward(ctx: Any, own: torch.Tensor) -> torch.Tensor:
        total = own.contiguous().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total


class SharedBatchNorm2d(nn.BatchNorm2d):
    """`BatchNorm2d` whose statistics in training are those of all processes' pictures together."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        alone = not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1
        if alone or not self.training:
            return super().forward(input)
        count = torch.full((1,), input.numel() / input.shape[1], dtype=input.dtype, device=input.device)
        sums = _Sum.apply(torch.cat([input.sum((0, 2, 3)), count]))
        n = sums[-1].detach()
        centred_BCHW = input - (sums[:-1] / n).view(1, -1, 1, 1)
        variance_C = _Sum.apply(centred_BCHW.square().sum((0, 2, 3))) / n
        self._remember((sums[:-1] / n).detach(), (variance_C * n / (n - 1)).detach())
        factor_C = (variance_C + self.eps).rsqrt() * self.weight
        return centred_BCHW * factor_C.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)

    @torch.no_grad()
    def _remember(self, mean_C: torch.Tensor, variance_C: torch.Tensor) -> None:
        """Move the running statistics, which evaluation uses, towards this batch's."""
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean_C.to(self.running_mean.dtype), self.momentum)
        self.running_var.lerp_(variance_C.to(self.running_var.dtype), self.momentum)


def share_batchnorm(module: nn.Module) -> None:
    """Turn every `BatchNorm2d` below `module` into one whose statistics are shared; its state stays."""
    for name, child in module.named_children():
        if type(child) is nn.BatchNorm2d:
            shared = SharedBatchNorm2d(child.num_features, eps=child.eps, momentum=child.momentum)
            shared.load_state_dict(child.state_dict())
            shared.to(child.weight.device, child.weight.dtype).train(child.training)
            setattr(module, name, shared)
        else:
            share_batchnorm(child)
