"""Self-attention from one packed projection: the sums of `nn.MultiheadAttention` without its copies.

`nn.MultiheadAttention` turns a batch-first input to tokens-first, lays queries, keys and values out anew after their
joint projection, and its output too before the last one: per layer and token eight widths are read and written for
nothing, forward and again backward, compiled or not. Here the three are views of what the projection wrote, in the
order that the fused kernels (flash, cuDNN) read and write. Names and shapes of the weights stay, so does the
initialisation; the vectors agree to rounding.

Self-attention alone, batch first, without dropout and without returning weights: what a CLIP's towers ask for.

Axes: B rows, L tokens, D width, H heads.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

__all__ = ["PackedAttention", "pack_attention"]


class PackedAttention(nn.Module):
    """Takes the weights of an `nn.MultiheadAttention` over, and is called as a block of open_clip calls one."""

    def __init__(self, stock: nn.MultiheadAttention) -> None:
        super().__init__()
        assert stock.in_proj_weight is not None and stock.batch_first and not stock.dropout, "see the module's scope"
        self.num_heads = stock.num_heads
        self.in_proj_weight = stock.in_proj_weight
        self.in_proj_bias = stock.in_proj_bias
        self.out_proj = stock.out_proj

    def forward(
        self,
        query_BLD: torch.Tensor,
        key_BLD: torch.Tensor,
        value_BLD: torch.Tensor,
        need_weights: bool = False,
        attn_mask: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, None]:
        """Attention of tokens to each other; queries, keys and values are one tensor. `attn_mask` is added to the
        scores and broadcast to (B, H, L, L); one of (B x H, L, L), as open_clip makes them, is taken too."""
        query_BHLd, key_BHLd, value_BHLd = self._split(F.linear(query_BLD, self.in_proj_weight, self.in_proj_bias))
        return self._answer(query_BHLd, key_BHLd, value_BHLd, attn_mask), None

    def last(self, seen_BLD: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """What the last token alone is answered, (B, 1, D); `mask` broadcasts to (B, H, 1, L)."""
        width = seen_BLD.shape[-1]
        weights, biases = self.in_proj_weight, self.in_proj_bias
        query_B1D = F.linear(seen_BLD[:, -1:], weights[:width], biases[:width])
        both_BLE = F.linear(seen_BLD, weights[width:], biases[width:])
        (query_BH1d,), (key_BHLd, value_BHLd) = self._split(query_B1D), self._split(both_BLE)
        return self._answer(query_BH1d, key_BHLd, value_BHLd, mask)

    def _split(self, packed_BLE: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """One, two or three times the width as so many views (B, H, L, D / H)."""
        parts = packed_BLE.shape[-1] // self.in_proj_weight.shape[1]
        return packed_BLE.unflatten(-1, (parts, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)

    def _answer(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        if mask is not None:
            mask = (mask.unflatten(0, (-1, self.num_heads)) if mask.ndim == 3 else mask).to(query.dtype)
        found_BHLd = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.out_proj(found_BHLd.transpose(1, 2).flatten(2))


def pack_attention(blocks: Iterable[Any]) -> None:
    """Let blocks of open_clip (`ResidualAttentionBlock`, self-attention) attend by `PackedAttention`."""
    for block in blocks:
        block.attn = PackedAttention(block.attn)
