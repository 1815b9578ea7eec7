"""The two towers of open_clip's CoCa as a contrastive loss needs them, without what it does not.

Equal to open_clip's own towers to rounding, from the same modules and weights:

- The pooler has 256 queries, of which the first alone becomes the picture's vector; the others feed the caption
  decoder. One query is asked here. The weights of the rest get the same zero gradient.
- The class token is the last of the text tower, and nothing but it is read of the last layer: that layer computes keys
  and values of all tokens, and everything else of one.
- A mask (B, 1, L, L) is made once, in place of one a head and layer.
- Patches are cut out and go through one matrix product. A convolution whose stride is its width is the same sum, for
  which cuDNN has often picked a slow kernel in bf16 (huggingface/transformers#45750, sglang-omni#132).

With captions the whole of what the towers say is needed: open_clip's own `forward` is the path then.

Axes: B pairs, C channels, H height, W width, P patches, L tokens, D width of a tower, E embedding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F  # noqa: N812
from torch.utils.checkpoint import checkpoint

__all__ = ["image_latent", "text_latent"]


def image_latent(visual: Any, pixels_BCHW: torch.Tensor) -> torch.Tensor:
    """The picture's vector (B, E), not yet of unit length, of an open_clip `VisionTransformer` with a pooler."""
    tokens_BPD = visual.transformer(_embedded_patches(visual, pixels_BCHW))
    pooler = visual.attn_pool
    seen_BPD = pooler.ln_k(tokens_BPD)
    asked_B1E = pooler.ln_q(pooler.query[:1]).expand(len(seen_BPD), 1, -1)
    pooled_B1E, _ = pooler.attn(asked_B1E, seen_BPD, seen_BPD, need_weights=False)
    return visual.ln_post(pooled_B1E)[:, 0] @ visual.proj


def text_latent(text: Any, tokens_BL: torch.Tensor) -> torch.Tensor:
    """The sentence's vector (B, E), not yet of unit length, of an open_clip `TextTransformer` with a class token."""
    words_BLD = text.token_embedding(tokens_BL)
    x_BLD = torch.cat([words_BLD, text.cls_emb.expand(len(words_BLD), 1, -1)], dim=1)
    x_BLD = x_BLD + text.positional_embedding[: x_BLD.shape[1]]
    mask_B1LL = _text_mask(text, tokens_BL, x_BLD.dtype)
    *layers, last = text.transformer.resblocks
    again = text.transformer.grad_checkpointing
    for layer in layers:
        if again:
            x_BLD = checkpoint(layer, x_BLD, None, None, mask_B1LL, use_reentrant=False)
        else:
            x_BLD = layer(x_BLD, attn_mask=mask_B1LL)
    class_B1D = _last_token(last, x_BLD, mask_B1LL[:, :, -1:])
    return text.ln_final(class_B1D)[:, 0] @ text.text_projection


def _embedded_patches(visual: Any, pixels_BCHW: torch.Tensor) -> torch.Tensor:
    """Class token and patches as the first layer reads them, (B, 1 + P, D)."""
    px = visual.conv1.kernel_size[0]
    across = pixels_BCHW.shape[-1] // px
    cut = pixels_BCHW.unflatten(3, (across, px)).unflatten(2, (-1, px))  # (B, C, rows, px, columns, px)
    patches_BPK = cut.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
    x_BPD = F.linear(patches_BPK, visual.conv1.weight.flatten(1))
    class_B1D = visual.class_embedding.to(x_BPD.dtype).expand(len(x_BPD), 1, -1)
    x_BPD = torch.cat([class_B1D, x_BPD], dim=1) + visual.positional_embedding.to(x_BPD.dtype)
    return visual.ln_pre(visual.patch_dropout(x_BPD))


def _text_mask(text: Any, tokens_BL: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What is added to the scores, (B, 1, L, L): later tokens and padding are hidden. open_clip hides the padding one
    place late, which published weights were trained with; its class token stands for the first place, not the last."""
    shown_BL = F.pad(tokens_BL != text.pad_id, (1, 0), value=True)
    causal_LL = text.attn_mask[: shown_BL.shape[1], : shown_BL.shape[1]].to(dtype)
    return causal_LL.masked_fill(~shown_BL[:, None, None, :], -torch.inf)


def _last_token(block: Any, x_BLD: torch.Tensor, mask_B11L: torch.Tensor) -> torch.Tensor:
    """A block's answer for its last token alone, (B, 1, D)."""
    answered_B1D = x_BLD[:, -1:] + block.ls_1(block.attn.last(block.ln_1(x_BLD), mask_B11L))
    return answered_B1D + block.ls_2(block.mlp(block.ln_2(answered_B1D)))
