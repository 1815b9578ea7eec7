"""ST-Align's attention-based fusion (ABFN): a picture's vector and a gene vector into one of the same width.

Each vector of d numbers is read as s tokens of l numbers (d = s x l). Pictures attend to genes and genes to pictures,
each direction with its own W_q, W_k, W_v (l x l); the two answers are brought to l/2 numbers a token and laid side by
side. ST-Align (arXiv 2411.16793), equations 7 to 9.

Where the paper is unclear: its equations repeat the same index on query and key, and apply the values without the
weighted sum; this is plain attention over the tokens of one sample. It prints one set of W_q, W_k, W_v for both
directions; here each has its own. It divides by sqrt(d), though the keys are l wide: `scale="printed"` does that,
`scale="tokens"` divides by sqrt(l). s and l are not given; 8 tokens are those of the authors' repository.

Axes: B pairs, S tokens, L numbers in a token, D = S x L.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from histolake.platform.errors import ModelError

__all__ = ["AttentionFusion", "CrossAttention"]


class CrossAttention(nn.Module):
    """One direction: the asking tokens (B, S, L) answered from the other's, then brought to (B, S, L/2)."""

    def __init__(self, token_width: int, divisor: float) -> None:
        super().__init__()
        self.query = nn.Linear(token_width, token_width, bias=False)
        self.key = nn.Linear(token_width, token_width, bias=False)
        self.value = nn.Linear(token_width, token_width, bias=False)
        self.out = nn.Linear(token_width, token_width // 2, bias=False)
        self._factor = 1 / divisor

    def forward(self, asking_BSL: torch.Tensor, other_BSL: torch.Tensor) -> torch.Tensor:
        answer_BSL = F.scaled_dot_product_attention(
            self.query(asking_BSL), self.key(other_BSL), self.value(other_BSL), scale=self._factor
        )
        return self.out(answer_BSL)


class AttentionFusion(nn.Module):
    """A picture's vector (B, D) and a gene vector (B, D) into one (B, D), not yet of unit length."""

    def __init__(self, width: int, tokens: int = 8, *, scale: str = "printed") -> None:
        super().__init__()
        if tokens < 1 or width % (2 * tokens):
            raise ModelError(
                f"embed_dim {width} cannot be read as {tokens} tokens of an even width; make it a multiple of "
                f"{2 * max(tokens, 1)}."
            )
        token_width = width // tokens
        if scale not in ("printed", "tokens"):
            raise ModelError(f"fusion_scale is {scale!r}; it must be 'printed' (sqrt of d) or 'tokens' (sqrt of l).")
        divisor = (width if scale == "printed" else token_width) ** 0.5
        self.tokens = tokens
        self.width = width
        self.image_asks = CrossAttention(token_width, divisor)
        self.genes_ask = CrossAttention(token_width, divisor)

    def forward(self, image_BD: torch.Tensor, genes_BD: torch.Tensor) -> torch.Tensor:
        image_BSL = image_BD.unflatten(1, (self.tokens, -1))
        genes_BSL = genes_BD.unflatten(1, (self.tokens, -1))
        fused_BSL = torch.cat([self.image_asks(image_BSL, genes_BSL), self.genes_ask(genes_BSL, image_BSL)], dim=-1)
        return fused_BSL.flatten(1)
