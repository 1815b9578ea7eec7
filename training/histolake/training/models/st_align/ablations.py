"""The rows of ST-Align's Table 2 as settings: which parts are there, which losses, which vectors are judged.

The first three train nothing: they are frozen encoders on single spots. In "AE + ABFN" no loss reaches the fusion (the
two image-gene losses are taken before it), so its fused vectors come from weights as they were drawn; the table's low
figure for that row may well come from there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["ABLATIONS", "Ablation"]


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """One row: changes to `StAlignConfig`, the weights of the three losses, and what is judged."""

    row: str  # its name in the paper's table
    model: Mapping[str, Any] = field(default_factory=dict)  # fields of StAlignConfig
    spot_weight: float = 1 / 3  # of the spot's image-gene loss (lambda 1)
    niche_weight: float = 1 / 3  # of the niche's (lambda 2); the spot-niche loss has what is left to 1
    vector: str = "spot"  # what is clustered (the table's ARI)
    image_vector: str = "spot_image"  # what genes are predicted from (its MSE); "" where the table has none

    @property
    def trained(self) -> bool:
        """Whether there is anything to train."""
        return bool(self.model.get("project", True))

    @property
    def spot_niche_weight(self) -> float:
        """Of the loss between fused vectors of spots and niches."""
        return 1 - self.spot_weight - self.niche_weight


_UNTRAINED = {"encoders": "frozen", "project": False}

ABLATIONS: Mapping[str, Ablation] = {
    "image-encoder": Ablation(
        row="UNI", model={**_UNTRAINED, "modalities": "image", "fusion": "none"}, vector="spot_image"
    ),
    "gene-vectors": Ablation(
        row="scGPT",
        model={**_UNTRAINED, "modalities": "genes", "fusion": "none"},
        vector="spot_genes",
        image_vector="",
    ),
    "concatenate": Ablation(
        row="Concatenate (UNI, scGPT)", model={**_UNTRAINED, "fusion": "concatenate"}, image_vector=""
    ),
    "no-encoders": Ablation(row="ABFN + L_NS", model={"encoders": "frozen"}),
    "no-spot-niche": Ablation(row="AE + ABFN", model={"train_fusion": False}, spot_weight=0.5, niche_weight=0.5),
    "full": Ablation(row="AE + L_NS + ABFN"),
}
