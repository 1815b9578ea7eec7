"""What every model is: inputs and named vectors for training, two towers for embedding, and a face that takes bytes and
sentences.

Axes: B pairs, H height, W width, C channels, L tokens, D embedding, N inputs. Vectors are unit rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from histolake.training.images import decode
from histolake.training.inputs import Input
from histolake.training.tokenizers.base import Tokenizer

__all__ = ["EVAL_BATCH", "Encoder", "Model", "TwoTowers", "compared", "present_vectors"]

# Everything outside training is embedded in batches of this many, so that memory does not depend on the question.
EVAL_BATCH = 32


class Encoder(Protocol):
    """What training asks of a model. Implementations are `nn.Module`s: DistributedDataParallel can wrap them."""

    inputs: tuple[Input, ...]  # what it reads of a pair
    embed_dim: int  # D
    # Which inputs (their keys) each named vector is made from: a row has the vector where it has all of them.
    vector_needs: Mapping[str, tuple[str, ...]]

    def __call__(self, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Named unit rows (B, D), and `scale`, 1 / temperature, a scalar with a gradient. `batch` holds every input
        under its key; a row that lacks one holds zeros there, and what comes of it is left to the objective's mask."""
        ...


class TwoTowers(Encoder, Protocol):
    """An encoder of pictures and sentences apart, as embedding and serving ask for them."""

    def encode_images(self, image_BHWC: torch.Tensor) -> torch.Tensor:
        """Unit rows (B, D) of uint8 RGB pictures."""
        ...

    def encode_tokens(self, tokens_BL: torch.Tensor) -> torch.Tensor:
        """Unit rows (B, D) of token ids."""
        ...

    def scale(self) -> torch.Tensor:
        """1 / temperature, a scalar."""
        ...


def present_vectors(
    vector_needs: Mapping[str, tuple[str, ...]], present: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Which rows have each named vector (bool, B), from which rows have each input; a vector that every row has is left
    out, as an input that every row has is."""
    rows: dict[str, torch.Tensor] = {}
    for name, keys in vector_needs.items():
        for key in keys:
            if key in present:
                rows[name] = rows[name] & present[key] if name in rows else present[key]
    return rows


def compared(names: Iterable[str]) -> tuple[str, str]:
    """Of a model's vectors, the picture's and the genes' by which it is judged and by which pictures find genes."""
    return ("image", "text") if "image" in set(names) else ("spot_image", "spot_genes")


@dataclass
class Model:
    """A trained encoder with its card: bytes and sentences in, unit rows out."""

    encoder: Any  # TwoTowers that are an nn.Module
    tokenizer: Tokenizer
    card: dict[str, Any] = field(default_factory=dict)
    device: str = "cpu"
    batch: int = EVAL_BATCH  # inputs a forward pass

    def __post_init__(self) -> None:
        module: nn.Module = self.encoder
        module.to(self.device).eval()

    @property
    def embed_dim(self) -> int:
        """Width of a vector."""
        return int(self.encoder.embed_dim)

    def embed_images(self, images: Sequence[bytes]) -> np.ndarray:
        """Unit rows, float32 (N, D), of JPEG or PNG pictures of `card["image_um"]` micrometres."""
        return self._batched(images, lambda part: self._encode_pixels(self.decode_images(part)))

    def embed_sentences(self, sentences: Sequence[str]) -> np.ndarray:
        """Unit rows, float32 (N, D), of gene sentences."""
        return self._batched(sentences, lambda part: self._encode_tokens(self.tokenizer(part)))

    # The two halves of embedding by themselves, for a caller that prepares the next batch while this one is computed.

    def decode_images(self, images: Sequence[bytes], through: Callable[..., Iterable[np.ndarray]] = map) -> np.ndarray:
        """Pixels, uint8 (N, px, px, 3), of JPEG or PNG pictures; `through` may be the `map` of a pool of threads."""
        px = int(self.card["image_px"])
        pixels = list(through(partial(decode, px=px), images))
        return np.stack(pixels) if pixels else np.zeros((0, px, px, 3), dtype=np.uint8)

    def embed_pixels(self, image_NHWC: np.ndarray) -> np.ndarray:
        """Unit rows, float32 (N, D), of pictures as `decode_images` gives them."""
        return self._batched(image_NHWC, self._encode_pixels)

    def embed_tokens(self, tokens_NL: np.ndarray) -> np.ndarray:
        """Unit rows, float32 (N, D), of token ids as `tokenizer` gives them."""
        return self._batched(tokens_NL, self._encode_tokens)

    def _encode_pixels(self, image_BHWC: np.ndarray) -> torch.Tensor:
        return self.encoder.encode_images(torch.from_numpy(image_BHWC).to(self.device))

    def _encode_tokens(self, tokens_BL: np.ndarray) -> torch.Tensor:
        return self.encoder.encode_tokens(torch.from_numpy(tokens_BL).to(self.device))

    def _batched(self, inputs: Any, embed: Callable[[Any], torch.Tensor]) -> np.ndarray:
        out_ND = np.zeros((len(inputs), self.embed_dim), dtype=np.float32)
        with torch.inference_mode():
            for start in range(0, len(inputs), self.batch):
                part = inputs[start : start + self.batch]
                out_ND[start : start + len(part)] = embed(part).float().cpu().numpy()
        return out_ND
