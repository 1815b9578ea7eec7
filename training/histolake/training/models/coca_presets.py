"""The sizes of OmiCLIP that are known by name, and how its authors fine-tuned it. Numbers only; nothing is imported.

`vit-l-14` and `vit-b-32` are open_clip's `coca_ViT-L-14` and `coca_ViT-B-32`, weight for weight: the names and shapes
of their state dicts are the same. `tiny` is the same family at a size that a CPU trains from nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["COCA_PRESETS", "FINE_TUNING", "FineTuning"]

# Configurations for `coca.CocaConfig`.
COCA_PRESETS: Mapping[str, Mapping[str, Any]] = {
    # open_clip model_configs/coca_ViT-L-14.json. OmiCLIP's is this one, unchanged: 768-d and 76 tokens are stated in
    # Nature Methods 2025 (s41592-025-02707-1), and the authors' code loads their checkpoint as open_clip's model of
    # this name.
    "vit-l-14": {
        "embed_dim": 768,
        "image_px": 224,
        "patch_px": 14,
        "image_width": 1024,
        "image_layers": 24,
        "image_head_width": 64,
        "pooler_heads": 8,
        "pooler_queries": 256,
        "text_width": 768,
        "text_heads": 12,
        "text_layers": 12,
        "decoder_layers": 12,
        "context": 76,
        "vocab_size": 49408,
    },
    # open_clip model_configs/coca_ViT-B-32.json
    "vit-b-32": {
        "embed_dim": 512,
        "image_px": 224,
        "patch_px": 32,
        "image_width": 768,
        "image_layers": 12,
        "image_head_width": 64,
        "pooler_heads": 8,
        "pooler_queries": 256,
        "text_width": 512,
        "text_heads": 8,
        "text_layers": 12,
        "decoder_layers": 12,
        "context": 76,
        "vocab_size": 49408,
    },
    "tiny": {
        "embed_dim": 128,
        "image_px": 112,
        "patch_px": 14,
        "image_width": 128,
        "image_layers": 3,
        "image_head_width": 32,
        "pooler_heads": 4,
        "pooler_queries": 8,
        "text_width": 128,
        "text_heads": 4,
        "text_layers": 1,
        "decoder_layers": 1,
        "context": 76,
        "vocab_size": 49408,
    },
}


@dataclass(frozen=True, kw_only=True)
class FineTuning:
    """How OmiCLIP was fine-tuned on a user's own pairs, with the contrastive loss alone."""

    epochs: int
    # From the authors' notebooks (GuangyuWangLab2021/Loki, docs/notebooks, all case studies: open_clip's own trainer);
    # the paper states the epochs and the batch.
    global_batch: int = 64  # pairs a step, on one GPU
    lr: float = 5e-6  # peak learning rate
    weight_decay: float = 0.1
    warmup_steps: int = 10
    caption_weight: float = 0.0
    contrastive_weight: float = 1.0
    # brightness, contrast, saturation, hue, as torchvision's ColorJitter reads them; drawn for this share of pictures
    colour_jitter: tuple[float, float, float, float] = (0.32, 0.32, 0.32, 0.08)
    colour_jitter_share: float = 0.5
    # What open_clip's trainer takes for a model with "ViT" in its name where nothing is asked for (open_clip_train
    # params.py), with a cosine schedule.
    beta1: float = 0.9
    beta2: float = 0.98
    eps: float = 1e-6


# By task of Loki: Align and PredEx 10 epochs (PredEx: a fold), Decompose 5.
FINE_TUNING: Mapping[str, FineTuning] = {
    "align": FineTuning(epochs=10),
    "predict": FineTuning(epochs=10),
    "decompose": FineTuning(epochs=5),
}
