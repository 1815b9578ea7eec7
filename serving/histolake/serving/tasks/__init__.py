"""The downstream tasks as plain functions on arrays; no server, Ray, MLflow or Lance is needed.

    from histolake.serving.tasks import annotate, embed, predict, retrieve

Axes: N queries, M references, D embedding, K hits, G genes, C classes. Vectors are compared by cosine.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from histolake.serving.tasks.annotation import Annotation, annotate
    from histolake.serving.tasks.embedding import Encoder, embed
    from histolake.serving.tasks.prediction import Prediction, predict
    from histolake.serving.tasks.reference import Reference, load_reference
    from histolake.serving.tasks.retrieval import ExactIndex, Hits, retrieve

__all__ = [
    "Annotation",
    "Encoder",
    "ExactIndex",
    "Hits",
    "Prediction",
    "Reference",
    "annotate",
    "embed",
    "load_reference",
    "predict",
    "retrieve",
]

_HOME = {
    "Annotation": "annotation",
    "Encoder": "embedding",
    "ExactIndex": "retrieval",
    "Hits": "retrieval",
    "Prediction": "prediction",
    "Reference": "reference",
    "annotate": "annotation",
    "embed": "embedding",
    "load_reference": "reference",
    "predict": "prediction",
    "retrieve": "retrieval",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"histolake.serving.tasks.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
