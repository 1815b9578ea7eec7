"""Pairs of a batch that are no true negatives of each other.

A spot's neighbours show nearly the same tissue and say nearly the same sentence; so do the spots of a section that
looks like another (the same block of tissue, or the same section twice). Contrasting them teaches what is not so.
"""

from __future__ import annotations

import torch

from histolake.training.objectives.distributed import gather, joined_max

__all__ = ["ignore_mask"]

NOBODY = -1  # stands where a spot has fewer neighbours than others


def ignore_mask(
    ids_B: torch.Tensor,
    *,
    neighbours_BK: torch.Tensor | None = None,
    slides_B: torch.Tensor | None = None,
    kin_S: torch.Tensor | None = None,
) -> torch.Tensor:
    """Which pairs of the joined batch are no negatives of this process's, bool (B, N).

    `ids_B` are numbers of the pairs, `neighbours_BK` those of each one's neighbours: pairs are struck out where either
    names the other, and where the same pair comes twice. With `slides_B` (numbers of slides) and `kin_S` (by number of
    a slide that of its kin, -1 where it has none) also pairs of different slides that are kin. All int64.
    """
    ids_N = gather(ids_B)
    mask_BN = ids_B[:, None] == ids_N[None, :]
    if neighbours_BK is not None:
        neighbours_NK = gather(_as_wide_as_all(neighbours_BK))
        for named_B in neighbours_BK.unbind(dim=1):
            mask_BN |= named_B[:, None] == ids_N[None, :]
        for named_N in neighbours_NK.unbind(dim=1):
            mask_BN |= ids_B[:, None] == named_N[None, :]
    if slides_B is not None and kin_S is not None:
        slides_N = gather(slides_B)
        kin_B, kin_N = kin_S[slides_B], kin_S[slides_N]
        same_BN = (kin_B[:, None] == kin_N[None, :]) & (kin_B >= 0)[:, None]
        mask_BN |= same_BN & (slides_B[:, None] != slides_N[None, :])
    return mask_BN


def _as_wide_as_all(neighbours_BK: torch.Tensor) -> torch.Tensor:
    """Padded to the largest number of neighbours on any process."""
    width = int(joined_max(torch.tensor(neighbours_BK.shape[1], device=neighbours_BK.device)))
    return torch.nn.functional.pad(neighbours_BK, (0, width - neighbours_BK.shape[1]), value=NOBODY)
