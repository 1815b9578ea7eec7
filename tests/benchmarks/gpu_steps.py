"""Steps of training that are timed on a GPU: ours, and open_clip's own beside it.

All take data that lie on the device already, bf16 by autocast, a fused AdamW and the same clipping of gradients, and
end where the weights are new. Nothing is read back to the host.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from histolake.training.flops import example_batch
from histolake.training.models.coca import build_coca
from histolake.training.models.st_align.model import StAlign, StAlignConfig
from histolake.training.objectives import Contrastive, SpotNiche, backward
from histolake.training.precision import attention_kernels, autocast, compiled

__all__ = ["our_coca", "our_st_align", "ours", "stock_coca", "theirs"]

LR, DECAY, CLIP = 1e-5, 0.1, 1.0
NICHE_GENES = 4384  # of a niche's profile in the ST-Align authors' code

Step = Callable[[], torch.Tensor]


def our_coca(config: Mapping[str, Any], device: torch.device) -> nn.Module:
    """OmiCLIP of a size, contrastive alone, ready to train."""
    torch.manual_seed(0)
    return build_coca(config).to(device).train()


def our_st_align(changed: Mapping[str, Any], device: torch.device) -> nn.Module:
    """ST-Align as published, but for the weights of its frozen encoder (UNI's shape, drawn at random)."""
    torch.manual_seed(0)
    model = StAlign(StAlignConfig(**{"gene_ids": tuple(range(NICHE_GENES)), **changed}))
    model.load_frozen({"image_weights": "random"})
    return model.to(device).train()


def ours(
    model: nn.Module, rows: int, device: torch.device, *, words: int, how: str, backend: str, first: str, chunk: int = 0
) -> Step:
    """A step of ours. `how` is compiled (see `precision.compiled`), `first` the attention kernel to try first; with
    `chunk` the gradient goes through so many rows at a time."""
    compiled(model, how, backend=backend)
    cast, weights = autocast("bf16", device), [each for each in model.parameters() if each.requires_grad]
    optimiser = _adamw(weights, device)
    batch = example_batch(model.inputs, rows, device, words=words)
    parts = [{key: value[at : at + chunk] for key, value in batch.items()} for at in range(0, rows, chunk or rows)]
    objective = SpotNiche() if isinstance(model, StAlign) else Contrastive()

    def step() -> torch.Tensor:
        optimiser.zero_grad(set_to_none=True)
        if chunk:
            losses = backward(model, parts, objective, precision=cast)
        else:
            with cast():
                vectors = model(batch)
            losses = objective(vectors)
            losses["loss"].backward()
        nn.utils.clip_grad_norm_(weights, CLIP)
        optimiser.step()
        return losses["loss"].detach()

    return _within(lambda: attention_kernels(device, first), step)


def stock_coca(config: Mapping[str, Any], device: torch.device) -> Any:
    """open_clip's CoCa of the same sizes, as open_clip itself builds it."""
    from open_clip.coca_model import CoCa

    torch.manual_seed(0)
    tower = {"context_length": config["context"], "vocab_size": config["vocab_size"], "width": config["text_width"]}
    model = CoCa(
        embed_dim=config["embed_dim"],
        vision_cfg={
            "image_size": config["image_px"],
            "patch_size": config["patch_px"],
            "width": config["image_width"],
            "layers": config["image_layers"],
            "head_width": config["image_head_width"],
            "attentional_pool": True,
            "attn_pooler_heads": config["pooler_heads"],
            "attn_pooler_queries": config["pooler_queries"],
            "output_tokens": True,
        },
        text_cfg={
            **tower,
            "heads": config["text_heads"],
            "layers": config["text_layers"],
            "embed_cls": True,
            "output_tokens": True,
        },
        multimodal_cfg={
            **tower,
            "heads": config["text_heads"],
            "layers": config["decoder_layers"],
            "attn_pooler_heads": config["text_heads"],
        },
    )
    nn.init.normal_(model.text_decoder.text_projection, std=0.02)  # open_clip leaves it as memory happened to be
    return model.to(device).train()


class _Towers(nn.Module):
    """open_clip's CoCa as if it had no decoder."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: torch.Tensor, text: torch.Tensor) -> dict[str, torch.Tensor]:
        return {
            "image_features": self.model.encode_image(image),
            "text_features": self.model.encode_text(text),
            "logit_scale": self.model.logit_scale.exp(),
        }


def theirs(
    config: Mapping[str, Any], rows: int, device: torch.device, *, words: int, backend: str, decoder: bool
) -> Step:
    """A step of open_clip's trainer on its own CoCa: autocast in bf16, the whole model compiled, local loss, caption
    loss of weight 0. Without `decoder` its towers and its contrastive loss alone, which no flag of its gives."""
    from open_clip.loss import ClipLoss, CoCaLoss

    model = stock_coca(config, device)
    run = torch.compile(model if decoder else _Towers(model), backend=backend)
    flags = {"local_loss": True, "gather_with_grad": True, "cache_labels": True}
    loss = CoCaLoss(caption_loss_weight=0.0, clip_loss_weight=1.0, **flags) if decoder else ClipLoss(**flags)
    weights = list(model.parameters())
    optimiser = _adamw(weights, device)
    cast = autocast("bf16", device)
    draw = torch.Generator().manual_seed(0)
    px = config["image_px"]
    images = torch.randn(rows, 3, px, px, generator=draw).to(device)
    texts = torch.randint(1, words, (rows, config["context"]), generator=draw).to(device)

    def step() -> torch.Tensor:
        optimiser.zero_grad(set_to_none=True)
        with cast():
            total = sum(loss(**run(images, texts), output_dict=True).values())
        total.backward()
        nn.utils.clip_grad_norm_(weights, CLIP)
        optimiser.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        return total.detach()

    return step


def _adamw(weights: Sequence[torch.Tensor], device: torch.device) -> torch.optim.Optimizer:
    groups = [
        {"params": [each for each in weights if each.ndim >= 2], "weight_decay": DECAY},
        {"params": [each for each in weights if each.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=LR, betas=(0.9, 0.98), eps=1e-6, fused=device.type == "cuda")


def _within(context: Callable[[], AbstractContextManager[None]], step: Step) -> Step:
    def run() -> torch.Tensor:
        with context():
            return step()

    return run
