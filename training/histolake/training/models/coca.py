"""OmiCLIP: the contrastive half of open_clip's CoCa, at any size of the ViT-L/14 family.

The architecture is open_clip's own class, built from a configuration with the same fields as its `coca_ViT-L-14`; a
state dict of one is a state dict of the other (`coca_presets` has the known sizes, `published` reads the files). The
caption decoder is part of it, so that published checkpoints fit, but with caption weight 0 it is neither run nor
trained: OmiCLIP describes the contrastive loss alone, and open_clip's `forward` would compute the captions even then.
Without captions the towers are run by `coca_towers`, which leaves out what only the decoder reads; their attention is
`attention.PackedAttention` always. Neither changes a name, a shape or a vector beyond rounding.

A row that lacks its sentence holds zeros. Zero is padding, which the class token does not see (it sees one place that
is never hidden), so such a row gives some finite vector for the objective to mask; none is NaN.

Axes: B pairs, H height, W width, C channels, L tokens, P tokens of a picture, D embedding, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from histolake.training.inputs import Input, Picture, Sentence
from histolake.training.models.attention import pack_attention
from histolake.training.models.coca_towers import image_latent, text_latent
from histolake.training.torchvision_shim import import_torchvision

__all__ = ["CocaConfig", "CocaEncoder", "build_coca"]

# Mean and deviation of the pixels that OpenAI's CLIP was trained on; every model of this family expects them.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, kw_only=True)
class CocaConfig:
    """Sizes of the three towers and what they read. The defaults are coca_ViT-L-14's."""

    embed_dim: int = 768  # width of a vector
    image_px: int = 224  # pixels, width of the square input
    patch_px: int = 14  # pixels, width of a patch
    image_width: int = 1024
    image_layers: int = 24
    image_head_width: int = 64
    pooler_heads: int = 8
    pooler_queries: int = 256
    text_width: int = 768
    text_heads: int = 12
    text_layers: int = 12
    decoder_layers: int = 12
    context: int = 76  # tokens
    vocab_size: int = 49408
    patch_dropout: float = 0.0  # share of the patches left out of each picture in training
    init_temperature: float = 0.07
    min_temperature: float = 0.01  # CLIP's clamp
    caption_weight: float = 0.0  # of the caption loss; at 0 the decoder is neither run nor trained
    grad_checkpointing: bool = False  # compute a layer again on the way back: less memory, a third more work
    image_column: str = "niche_image"  # spot_image | niche_image
    sentence_column: str = "sentence"  # sentence | niche_sentence
    tokenizer: str = "bpe"


class CocaEncoder(nn.Module):
    """open_clip's CoCa as an encoder of pictures and sentences."""

    mean_C: torch.Tensor
    std_C: torch.Tensor

    def __init__(self, config: CocaConfig) -> None:
        super().__init__()
        import_torchvision()
        from open_clip.coca_model import CoCa

        self.embed_dim = config.embed_dim
        self.caption_weight = config.caption_weight
        self.inputs: tuple[Input, ...] = (
            Picture(column=config.image_column, px=config.image_px),
            Sentence(column=config.sentence_column, tokenizer=config.tokenizer, context=config.context),
        )
        self._image_key, self._sentence_key = (one.key for one in self.inputs)
        self.vector_needs: dict[str, tuple[str, ...]] = {"image": (self._image_key,), "text": (self._sentence_key,)}
        if config.caption_weight:
            self.vector_needs["caption_logits"] = (self._image_key, self._sentence_key)
        self._max_log_scale = -math.log(config.min_temperature)
        self.coca: Any = CoCa(
            embed_dim=config.embed_dim,
            vision_cfg={
                "image_size": config.image_px,
                "layers": config.image_layers,
                "width": config.image_width,
                "head_width": config.image_head_width,
                "patch_size": config.patch_px,
                "patch_dropout": config.patch_dropout,
                "attentional_pool": True,
                "attn_pooler_queries": config.pooler_queries,
                "attn_pooler_heads": config.pooler_heads,
                "output_tokens": True,
            },
            text_cfg={
                "context_length": config.context,
                "vocab_size": config.vocab_size,
                "width": config.text_width,
                "heads": config.text_heads,
                "layers": config.text_layers,
                "embed_cls": True,
                "output_tokens": True,
            },
            multimodal_cfg={
                "context_length": config.context,
                "vocab_size": config.vocab_size,
                "width": config.text_width,
                "heads": config.text_heads,
                "layers": config.decoder_layers,
                "attn_pooler_heads": config.text_heads,
            },
            init_logit_scale=-math.log(config.init_temperature),
        )
        # open_clip leaves this one as memory happened to be (its initialiser is never called); drawn after all others.
        nn.init.normal_(self.coca.text_decoder.text_projection, std=config.text_width**-0.5)
        self.coca.text_decoder.requires_grad_(bool(config.caption_weight))
        pack_attention(self.compile_parts())
        if config.grad_checkpointing:
            self.set_grad_checkpointing(True)
        self.register_buffer("mean_C", torch.tensor(CLIP_MEAN), persistent=False)
        self.register_buffer("std_C", torch.tensor(CLIP_STD), persistent=False)

    def set_grad_checkpointing(self, enable: bool) -> None:
        """Whether each layer is computed again on the way back instead of kept; the gradients are the same."""
        self.coca.set_grad_checkpointing(enable)

    def compile_parts(self) -> list[nn.Module]:
        """The layers that repeat, each a piece to compile by itself (see `precision.compiled`)."""
        return [*self.coca.visual.transformer.resblocks, *self.coca.text.transformer.resblocks]

    def normalise(self, image_BHWC: torch.Tensor) -> torch.Tensor:
        """uint8 pictures as the towers read them, (B, C, H, W), by open_clip's own steps in its own order, so that the
        numbers are the same to the last bit."""
        pixels_BCHW = image_BHWC.permute(0, 3, 1, 2).contiguous().to(self.mean_C.dtype)
        return (pixels_BCHW / 255 - self.mean_C[:, None, None]) / self.std_C[:, None, None]

    def encode_images(self, image_BHWC: torch.Tensor) -> torch.Tensor:
        return _unit(image_latent(self.coca.visual, self.normalise(image_BHWC)))

    def encode_tokens(self, tokens_BL: torch.Tensor) -> torch.Tensor:
        return _unit(text_latent(self.coca.text, tokens_BL))

    def scale(self) -> torch.Tensor:
        return self.coca.logit_scale.clamp(max=self._max_log_scale).exp()

    def forward(self, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """`image` and `text`, unit rows (B, D), and `scale`; with a caption weight also `caption_logits` (B, L, V).

        `caption_logits[:, t]` says what token t + 1 is, from the picture and tokens 0 ... t (open_clip's are these
        without the last t, beside labels without the first token)."""
        image, tokens_BL = batch[self._image_key], batch[self._sentence_key]
        if not self.caption_weight:
            return {"image": self.encode_images(image), "text": self.encode_tokens(tokens_BL), "scale": self.scale()}
        image_BD, seen_BPD = self.coca.visual(self.normalise(image))
        text_BD, read_BLE = self.coca.text(tokens_BL)
        return {
            "image": _unit(image_BD),
            "text": _unit(text_BD),
            "scale": self.scale(),
            "caption_logits": self.coca.text_decoder(seen_BPD, read_BLE),
        }


def _unit(latent_BD: torch.Tensor) -> torch.Tensor:
    """Rows of unit length, in single precision at least: a score is multiplied by up to 100."""
    half = latent_BD.dtype in (torch.float16, torch.bfloat16)
    return F.normalize(latent_BD.float() if half else latent_BD, dim=-1)


def build_coca(config: Mapping[str, Any]) -> CocaEncoder:
    """A fresh model of that configuration, weights drawn from torch's generator."""
    return CocaEncoder(CocaConfig(**config))
