"""A look at the validation side on the way: how often a picture finds its own genes among those of its slide.

Every worker embeds its share of the same pairs; the vectors are gathered, and every worker has the same figures.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from histolake.training.metrics import recall_at
from histolake.training.models.base import compared, present_vectors
from histolake.training.objectives.distributed import gather
from histolake.training.reading import PairReader

__all__ = ["held_out_figures"]

FRACTIONS = {"recall_at_5pct": 0.05, "recall_at_10pct": 0.10}
FEWEST = 2  # pairs of a slide that can be told apart


@torch.inference_mode()
def held_out_figures(encoder: Any, reader: PairReader, steps: int, device: torch.device) -> dict[str, float]:
    """Recall of the slides' pairs, means over slides, as `held_out_recall_at_5pct` and so on. `reader` is one of the
    validation side, of which `steps` batches are looked at. The encoder is left as it was."""
    one, other = compared(encoder.vector_needs)
    was_training = encoder.training
    encoder.eval()
    parts: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]] = []
    for batch in reader.batches(0, steps):
        here = batch.to(device)
        vectors: Mapping[str, torch.Tensor] = encoder(here.tensors)
        has = present_vectors(encoder.vector_needs, here.present)
        there_B = torch.ones(len(here.pair_ids), dtype=torch.bool, device=device)
        for name in (one, other):
            there_B &= has.get(name, there_B)
        parts.append((vectors[one].float(), vectors[other].float(), here.slides_B, there_B))
    encoder.train(was_training)
    image_ND, genes_ND, slide_N, there_N = (gather(torch.cat(each)).cpu() for each in zip(*parts, strict=True))
    found: dict[str, list[float]] = {name: [] for name in FRACTIONS}
    for slide in slide_N.unique():
        own_N = (slide_N == slide) & there_N
        if int(own_N.sum()) < FEWEST:
            continue
        scores_QC = (image_ND[own_N] @ genes_ND[own_N].T).numpy()
        for name, fraction in FRACTIONS.items():
            found[name].append(recall_at(scores_QC, fraction))
    return {f"held_out_{name}": sum(each) / len(each) for name, each in found.items() if each}
