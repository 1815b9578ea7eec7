"""Scores of this process's rows against those of all, with what is no candidate struck out."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch

from histolake.platform.errors import UsageError
from histolake.training.objectives.distributed import first_row, gather, joined_sum, ranks

__all__ = ["Rows", "cleared", "in_full", "mean_negatives", "mean_over_rows"]


def in_full(device: torch.device) -> AbstractContextManager[Any]:
    """Where scores are computed: not in the half precision that the caller may have asked for the model. At a scale of
    100, bf16 scores were seen to change a loss by a fifth."""
    return torch.autocast(device.type, enabled=False)


@dataclass(frozen=True)
class Rows:
    """Which rows count, and which candidates each has."""

    valid_B: torch.Tensor  # bool: rows that count
    own_BN: torch.Tensor  # bool: a row's own pair
    dead_BN: torch.Tensor  # bool: what is no candidate; a row's own pair never is dead

    @classmethod
    def of(cls, valid_B: torch.Tensor, ignore_BN: torch.Tensor | None) -> Rows:
        """The candidates of rows, but for those that lack something or are to be ignored."""
        valid_N = gather(valid_B)
        if ignore_BN is not None and ignore_BN.shape != (len(valid_B), len(valid_N)):
            raise UsageError(
                f"The mask of pairs to ignore is {tuple(ignore_BN.shape)}; it must be {(len(valid_B), len(valid_N))}: "
                "this worker's pairs by those of all workers."
            )
        own_BN = torch.zeros((len(valid_B), len(valid_N)), dtype=torch.bool, device=valid_B.device)
        at_B = torch.arange(len(valid_B), device=valid_B.device)
        own_BN[at_B, at_B + first_row(len(valid_B))] = True
        dead_BN = ~valid_N[None, :] if ignore_BN is None else ~valid_N[None, :] | ignore_BN
        return cls(valid_B, own_BN, dead_BN & ~own_BN)


def cleared(own_BD: torch.Tensor, valid_B: torch.Tensor) -> torch.Tensor:
    """Vectors in at least single precision, zero where the row does not count: whatever stood there, even what is no
    number, reaches neither a loss nor a gradient."""
    full_BD = own_BD.float() if own_BD.dtype in (torch.float16, torch.bfloat16) else own_BD
    return torch.where(valid_B[:, None], full_BD, torch.zeros((), dtype=full_BD.dtype, device=full_BD.device))


def mean_over_rows(loss_B: torch.Tensor, valid_B: torch.Tensor) -> torch.Tensor:
    """This process's share of the mean over the rows that count, of all processes; 0 where none does."""
    rows = joined_sum(valid_B.sum()).clamp(min=1)
    return torch.where(valid_B, loss_B, torch.zeros_like(loss_B)).sum() * ranks() / rows


def mean_negatives(rows: Rows) -> torch.Tensor:
    """Mean number of negatives of a row that counts, over all processes."""
    each_B = (~rows.dead_BN & ~rows.own_BN).sum(dim=1) * rows.valid_B
    return joined_sum(each_B.sum()).double() / joined_sum(rows.valid_B.sum()).clamp(min=1)
