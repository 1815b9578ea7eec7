"""The trainable encoder of niche profiles, and what stands for a frozen gene encoder where there is none.

The paper gives 6 layers, 8 heads and a dropout of 0.1, not how a profile becomes tokens. Here it is cut, in the model's
own order of genes, into patches of fixed size (the last one padded with zeros), and each patch has its own linear map,
so that every gene has its own direction. A class token gathers them.

Axes: B pairs, G genes, P patches, K genes in a patch, D width.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from histolake.platform.errors import ModelError

__all__ = ["GeneProjection", "NicheGeneEncoder", "ProfilePatches"]

# The seed of every fixed projection: equal widths give equal projections, in any process.
PROJECTION_SEED = 20241125


class ProfilePatches(nn.Module):
    """A profile (B, G) as tokens (B, P, D): patch p is mapped by its own K x D matrix and has its own bias."""

    def __init__(self, genes: int, *, patch_genes: int, width: int) -> None:
        super().__init__()
        if genes < 1 or patch_genes < 1:
            raise ModelError(
                f"A profile of {genes} genes cannot be cut into patches of {patch_genes}; both must be > 0."
            )
        self.genes = genes
        self.patches = -(-genes // patch_genes)
        self.patch_genes = patch_genes
        self.weight_PKD = nn.Parameter(torch.empty(self.patches, patch_genes, width))
        self.bias_PD = nn.Parameter(torch.empty(self.patches, width))
        nn.init.normal_(self.weight_PKD, std=patch_genes**-0.5)
        nn.init.normal_(self.bias_PD, std=0.02)

    def forward(self, profile_BG: torch.Tensor) -> torch.Tensor:
        if profile_BG.shape[1] != self.genes:
            raise ModelError(f"A profile holds {profile_BG.shape[1]} genes; this model reads {self.genes}.")
        padded_BG = F.pad(profile_BG, (0, self.patches * self.patch_genes - self.genes))
        patches_BPK = padded_BG.view(len(padded_BG), self.patches, self.patch_genes)
        return torch.einsum("bpk,pkd->bpd", patches_BPK.to(self.weight_PKD.dtype), self.weight_PKD) + self.bias_PD


class NicheGeneEncoder(nn.Module):
    """A Transformer encoder over the patches of a profile: (B, G) to the class token (B, width)."""

    def __init__(
        self,
        genes: int,
        *,
        patch_genes: int = 256,
        width: int = 512,
        layers: int = 6,
        heads: int = 8,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if width % heads:
            raise ModelError(
                f"niche_width {width} cannot be shared by {heads} heads; make it a multiple of niche_heads."
            )
        self.width = width
        self.patches = ProfilePatches(genes, patch_genes=patch_genes, width=width)
        self.class_D = nn.Parameter(torch.empty(width))
        nn.init.normal_(self.class_D, std=0.02)
        self.dropout = nn.Dropout(dropout)
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        for one in self.layers.layers[1:]:  # the copies of one layer start apart
            _redraw(one)
        self.norm = nn.LayerNorm(width)

    def forward(self, profile_BG: torch.Tensor) -> torch.Tensor:
        tokens_BPD = self.patches(profile_BG)
        class_B1D = self.class_D.expand(len(tokens_BPD), 1, -1)
        out_BTD = self.layers(self.dropout(torch.cat([class_B1D, tokens_BPD], dim=1)))
        return self.norm(out_BTD[:, 0])


def _redraw(layer: nn.Module) -> None:
    for module in layer.modules():
        if isinstance(module, nn.Linear):
            module.reset_parameters()
        elif isinstance(module, nn.MultiheadAttention):
            module._reset_parameters()


class GeneProjection(nn.Module):
    """A fixed random projection of a profile: (B, G) to (B, width), without anything to train.

    It stands where a frozen gene encoder (scGPT, scFoundation, Geneformer) has no vectors at hand, so that everything
    runs anywhere. It keeps the angles between profiles (Johnson and Lindenstrauss 1984) and knows nothing of genes: no
    pretraining, no cell types. Figures that were made with it are not those of the paper.
    """

    weight_GD: torch.Tensor

    def __init__(self, genes: int, width: int = 512) -> None:
        super().__init__()
        if genes < 1:
            raise ModelError("gene_ids is empty; list the lake's gene ids that the model reads.")
        self.width = width
        draw = torch.Generator().manual_seed(PROJECTION_SEED)
        self.register_buffer("weight_GD", torch.randn(genes, width, generator=draw, device="cpu") * genes**-0.5)

    @torch.no_grad()
    def forward(self, profile_BG: torch.Tensor) -> torch.Tensor:
        if profile_BG.shape[1] != len(self.weight_GD):
            raise ModelError(f"A profile holds {profile_BG.shape[1]} genes; this model reads {len(self.weight_GD)}.")
        return profile_BG.to(self.weight_GD.dtype) @ self.weight_GD
