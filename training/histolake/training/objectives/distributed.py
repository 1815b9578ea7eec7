"""What the processes of a run tell each other about a batch. Without a process group, a process is alone."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

__all__ = ["first_row", "gather", "gather_with_gradient", "joined_max", "joined_sum", "ranks"]


def ranks() -> int:
    """How many processes share the batch."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def first_row(rows: int) -> int:
    """Where this process's rows begin in the joined batch."""
    return dist.get_rank() * rows if ranks() > 1 else 0


def gather(own_B: torch.Tensor) -> torch.Tensor:
    """The rows of every process in order of rank (N, ...); no gradient flows."""
    if ranks() == 1:
        return own_B
    sent = own_B.to(torch.uint8) if own_B.dtype == torch.bool else own_B
    parts = [torch.empty_like(sent) for _ in range(ranks())]
    dist.all_gather(parts, sent.detach().contiguous())
    return torch.cat(parts).to(own_B.dtype)


def gather_with_gradient(own_BD: torch.Tensor) -> torch.Tensor:
    """The rows of every process in order of rank, (N, D); gradients flow back to the process that owns each row."""
    return own_BD if ranks() == 1 else _Gather.apply(own_BD)


def joined_sum(own: torch.Tensor) -> torch.Tensor:
    """The sum over all processes; no gradient flows."""
    return _reduced(own, "SUM")


def joined_max(own: torch.Tensor) -> torch.Tensor:
    """The largest over all processes; no gradient flows."""
    return _reduced(own, "MAX")


def _reduced(own: torch.Tensor, how: str) -> torch.Tensor:
    total = own.detach().clone()
    if ranks() > 1:
        dist.all_reduce(total, op=getattr(dist.ReduceOp, how))
    return total


class _Gather(torch.autograd.Function):
    """all_gather whose backward sums, over the processes, the gradient of the slice that each one owns."""

    @staticmethod
    def forward(ctx: Any, own_BD: torch.Tensor) -> torch.Tensor:
        parts = [torch.empty_like(own_BD) for _ in range(ranks())]
        dist.all_gather(parts, own_BD.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        total_ND = gradients[0].contiguous().clone()
        dist.all_reduce(total_ND)
        return total_ND.chunk(ranks())[dist.get_rank()]
