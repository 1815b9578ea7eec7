"""The contrastive objective, on one process and on many.

Axes: B pairs of this process, N pairs of all processes, D embedding. Vectors are unit rows; `scale` is 1 / temperature.

On many processes each computes only its own rows of the two score matrices (local loss, gathered features): memory
grows with B x N, not N x N. `all_gather` here carries gradients back to the process they belong to, and the loss is
scaled so that the mean over processes that DistributedDataParallel takes equals the gradient of one process on the
joined batch.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch.nn import functional as F  # noqa: N812

__all__ = ["gather_with_gradient", "info_nce", "info_nce_distributed"]


def info_nce(
    image_BD: torch.Tensor,
    text_BD: torch.Tensor,
    scale: torch.Tensor,
    *,
    ignore_BB: torch.Tensor | None = None,
) -> torch.Tensor:
    """Mean of both directions of the symmetric InfoNCE (OmiCLIP eq. 1 prints their sum; CLIP the mean: a factor 2).

    `ignore_BB` (bool) marks pairs that are no true negatives, such as neighbours; the diagonal is never ignored.
    """
    labels_B = torch.arange(len(image_BD), device=image_BD.device)
    return _both_directions(image_BD, text_BD, image_BD, text_BD, scale, labels_B, ignore_BB)


def info_nce_distributed(
    image_BD: torch.Tensor,
    text_BD: torch.Tensor,
    scale: torch.Tensor,
    *,
    ignore_BN: torch.Tensor | None = None,
) -> torch.Tensor:
    """This process's share of `info_nce` on the joined batch: the mean over processes is the joined loss, and the mean
    of the gradients is its gradient. Every process must hold the same number of pairs."""
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return info_nce(image_BD, text_BD, scale, ignore_BB=ignore_BN)
    image_ND = gather_with_gradient(image_BD)
    text_ND = gather_with_gradient(text_BD)
    first = dist.get_rank() * len(image_BD)
    labels_B = torch.arange(first, first + len(image_BD), device=image_BD.device)
    return _both_directions(image_BD, text_BD, image_ND, text_ND, scale, labels_B, ignore_BN)


def _both_directions(
    image_BD: torch.Tensor,
    text_BD: torch.Tensor,
    image_ND: torch.Tensor,
    text_ND: torch.Tensor,
    scale: torch.Tensor,
    labels_B: torch.Tensor,
    ignore_BN: torch.Tensor | None,
) -> torch.Tensor:
    of_image_BN = scale * image_BD @ text_ND.T
    of_text_BN = scale * text_BD @ image_ND.T
    if ignore_BN is not None:
        own_BN = F.one_hot(labels_B, num_classes=len(text_ND)).bool()
        of_image_BN = of_image_BN.masked_fill(ignore_BN & ~own_BN, -torch.inf)
        of_text_BN = of_text_BN.masked_fill(ignore_BN & ~own_BN, -torch.inf)
    return (F.cross_entropy(of_image_BN, labels_B) + F.cross_entropy(of_text_BN, labels_B)) / 2


class _Gather(torch.autograd.Function):
    """all_gather whose backward sums, over the processes, the gradient of the slice that each one owns."""

    @staticmethod
    def forward(ctx: Any, own_BD: torch.Tensor) -> torch.Tensor:
        parts = [torch.empty_like(own_BD) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, own_BD.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        total_ND = gradients[0].contiguous().clone()
        dist.all_reduce(total_ND)
        return total_ND.chunk(dist.get_world_size())[dist.get_rank()]


def gather_with_gradient(own_BD: torch.Tensor) -> torch.Tensor:
    """The rows of every process in order of rank, (N, D); gradients flow back to the process that owns each row."""
    return _Gather.apply(own_BD)
