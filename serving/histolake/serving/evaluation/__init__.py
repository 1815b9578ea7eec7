"""How well a model does what it is served for: the very tasks that are served, on slides it was not trained on.

protocol      one model on one side of its split: retrieval, prediction, and what simple methods reach
baselines     mean predictor, ridge and linear CCA on frozen image features
features      the frozen image features
sections      pairs of a slide as arrays
figures       from scores and predictions to figures
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from histolake.serving.evaluation.baselines import Baselines, fit_baselines
    from histolake.serving.evaluation.protocol import Evaluation, Evaluator

__all__ = ["Baselines", "Evaluation", "Evaluator", "fit_baselines"]

_HOME = {"Baselines": "baselines", "Evaluation": "protocol", "Evaluator": "protocol", "fit_baselines": "baselines"}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"histolake.serving.evaluation.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
