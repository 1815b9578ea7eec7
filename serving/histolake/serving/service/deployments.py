"""The parts of the service that hold something: the encoder its weights, the library its reference.

Both take a `Published` model that is already pinned to a version, so that every replica loads the same one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ray import serve

from histolake.platform.errors import HistolakeError
from histolake.serving.published import Published
from histolake.serving.tasks import ExactIndex, embed, load_reference, predict, retrieve

__all__ = ["Encoder", "Library", "Refusal"]


@dataclass(frozen=True)
class Refusal:
    """A request that cannot be answered, with the sentence that says why. Returned, not raised: an exception that
    crosses processes arrives wrapped in the other side's traceback."""

    sentence: str


@serve.deployment
class Encoder:
    """Images and sentences to vectors; requests that arrive together are embedded together."""

    def __init__(self, published: Published, threads: int) -> None:
        import torch

        from histolake.training.models import load_model

        torch.set_num_threads(threads)
        self._model = load_model(published.local())

    @serve.batch
    async def images(self, requests: list[list[bytes]]) -> list[np.ndarray | Refusal]:
        """Vectors (N, D) for each request's images."""
        return await asyncio.to_thread(_together, requests, lambda flat: embed(self._model, images=flat), "Image")

    @serve.batch
    async def sentences(self, requests: list[list[str]]) -> list[np.ndarray | Refusal]:
        """Vectors (N, D) for each request's sentences."""
        return await asyncio.to_thread(_together, requests, lambda flat: embed(self._model, sentences=flat), "Sentence")

    def reconfigure(self, batching: dict[str, Any]) -> None:
        """How many requests are embedded together, and how long one waits for company."""
        methods: tuple[Any, ...] = (self.images, self.sentences)  # what serve.batch adds has no types
        for method in methods:
            method.set_max_batch_size(batching["requests"])
            method.set_batch_wait_timeout_s(batching["wait_s"])


def _together(
    requests: Sequence[list[Any]], make: Callable[[list[Any]], np.ndarray], kind: str
) -> list[np.ndarray | Refusal]:
    """One call for all requests. If it fails, each request by itself: a broken image fails its own request only."""
    flat = [item for request in requests for item in request]
    try:
        ends = np.cumsum([len(request) for request in requests])[:-1]
        return list(np.split(make(flat), ends))
    except HistolakeError as error:
        if len(requests) > 1:
            return [_together([request], make, kind)[0] for request in requests]
        return [_blame(requests[0], make, kind, error)]


def _blame(request: list[Any], make: Callable[[list[Any]], np.ndarray], kind: str, error: HistolakeError) -> Refusal:
    for place, item in enumerate(request):
        try:
            make([item])
        except HistolakeError as reason:
            return Refusal(f"{kind} {place}: {reason}")
    return Refusal(str(error))


@serve.deployment
class Library:
    """Answers from the model's reference: its training pairs, their expression, and what was chosen on validation."""

    def __init__(self, published: Published) -> None:
        self._reference = load_reference(published.local())
        self._indices = {
            "images": ExactIndex(self._reference.image_MD),
            "sentences": ExactIndex(self._reference.text_MD),
        }

    def describe(self) -> dict[str, Any]:
        """What there is to ask."""
        reference = self._reference
        return {
            "reference_pairs": len(reference),
            "training_slides": reference.training_slides,
            "genes": reference.symbols,
            "predict": reference.calibration["predict"],
        }

    def retrieve(
        self, query_ND: np.ndarray, k: int, against: str, exclude_slides: list[str]
    ) -> list[list[dict[str, Any]]] | Refusal:
        """For each query its k nearest training pairs, best first."""
        reference = self._reference
        try:
            keep_M = reference.keep_all_but(exclude_slides)
            hits = retrieve(query_ND, self._indices[against], k, keep_M=keep_M)
        except HistolakeError as error:
            return Refusal(str(error))
        return [
            [self._hit(int(row), float(score)) for row, score in zip(rows_K, scores_K, strict=True)]
            for rows_K, scores_K in zip(hits.rows_NK, hits.scores_NK, strict=True)
        ]

    def _hit(self, row: int, score: float) -> dict[str, Any]:
        reference = self._reference
        return {
            "pair_id": reference.pair_ids[row].hex(),
            "slide_id": str(reference.slide_ids[row]),
            "barcode": reference.barcodes[row],
            "x_px": float(reference.x_px[row]),
            "y_px": float(reference.y_px[row]),
            "score": score,
            "sentence": reference.sentences[row],
        }

    def predict(self, query_ND: np.ndarray, genes: list[str] | None) -> dict[str, Any] | Refusal:
        """Expression of the genes, and similarity to the nearest training pair."""
        reference = self._reference
        try:
            columns = reference.columns_of(genes)
            found = predict(
                query_ND, self._indices["sentences"], reference.expression_MG[:, columns], **reference.predict_settings
            )
        except HistolakeError as error:
            return Refusal(str(error))
        return {
            "genes": [reference.symbols[column] for column in columns],
            "expression": found.expression_NG.tolist(),
            "nearest_similarity": found.nearest_similarity_N.tolist(),
        }
