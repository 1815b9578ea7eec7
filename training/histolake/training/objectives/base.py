"""What every objective is.

Axes of this package: B pairs of this process, N pairs of all processes in the order of their ranks, D numbers of a
vector, K neighbours. Vectors are named unit rows; `scale` is 1 / temperature.

On many processes each computes only its own rows of a score matrix (local loss, gathered features): memory grows with
B x N, not N x N. What an objective gives is this process's share, scaled so that the mean over the processes is the
loss of one process on the joined batch, and so is the mean of the gradients, which DistributedDataParallel takes. Every
process must hold the same number of pairs.

A row that lacks a modality counts nowhere: it is no row, no candidate of another's, and not in the number that a mean
is divided by.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch

__all__ = ["NO_MASKS", "Masks", "Objective", "present_in"]

Masks = Mapping[str, torch.Tensor]
NO_MASKS: Masks = {}


class Objective(Protocol):
    """From vectors to losses."""

    def __call__(
        self,
        vectors: Mapping[str, torch.Tensor],
        *,
        present: Masks = NO_MASKS,
        ignore_BN: torch.Tensor | None = None,
        batch: Mapping[str, torch.Tensor] = NO_MASKS,
    ) -> dict[str, torch.Tensor]:
        """`loss`, which is to be differentiated, its parts as `loss_<part>`, and `negatives`: how many negatives a row
        had in the mean, over all processes.

        `present` says by name of a vector which rows have it, bool (B,); who is not named is there for all. `ignore_BN`
        (bool) marks pairs that are no true negatives; a row's own pair is never ignored. `batch` are the model's
        inputs.
        """
        ...


def present_in(vectors: Mapping[str, torch.Tensor], present: Masks, *names: str) -> torch.Tensor:
    """The rows that have all of some vectors, bool (B,)."""
    rows = vectors[names[0]]
    valid_B = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
    for name in names:
        if name in present:
            valid_B = valid_B & present[name]
    return valid_B
