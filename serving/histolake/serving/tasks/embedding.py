"""Embed: patches or gene sentences as unit vectors of one space, in which a cosine compares any two."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from histolake.platform.errors import UsageError

__all__ = ["Encoder", "embed"]


class Encoder(Protocol):
    """What a loaded model offers (`histolake.training.models.load_model`)."""

    def embed_images(self, images: Sequence[bytes]) -> np.ndarray:
        """Unit vectors (N, D) of JPEG or PNG bytes."""
        ...

    def embed_sentences(self, sentences: Sequence[str]) -> np.ndarray:
        """Unit vectors (N, D) of gene sentences."""
        ...


def embed(
    model: Encoder, *, images: Sequence[bytes] | None = None, sentences: Sequence[str] | None = None
) -> np.ndarray:
    """Unit vectors (N, D), float32, of images (JPEG or PNG bytes) or of gene sentences; one of the two is given.

    An image should show the width in micrometres that the model was trained on (`image_um` of its card); a sentence is
    symbols by falling expression, separated by spaces. The numbers do not depend on how a list is batched (1e-5).

    Raises `UsageError` unless exactly one non-empty list is given, or for a blank sentence.
    """
    if (images is None) == (sentences is None):
        raise UsageError("Give either images or sentences to embed, and only one of them.")
    if images is not None:
        if not len(images):
            raise UsageError("The list of images is empty; give at least one.")
        return np.asarray(model.embed_images(images), dtype=np.float32)
    assert sentences is not None
    if not len(sentences):
        raise UsageError("The list of sentences is empty; give at least one.")
    blank = [i for i, sentence in enumerate(sentences) if not sentence.strip()]
    if blank:
        raise UsageError(
            f"Sentence {blank[0]} is blank; write gene symbols by falling expression, separated by spaces."
        )
    return np.asarray(model.embed_sentences(sentences), dtype=np.float32)
