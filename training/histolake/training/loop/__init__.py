"""Training on Ray Train: the same code on a laptop's CPU and on many nodes of GPUs."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from histolake.training.loop.checkpoints import read_state
    from histolake.training.loop.group import BEST_BY, fit
    from histolake.training.loop.plan import TrainPlan

__all__ = ["BEST_BY", "TrainPlan", "fit", "read_state"]

_HOME = {"BEST_BY": "group", "TrainPlan": "plan", "fit": "group", "read_state": "checkpoints"}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"histolake.training.loop.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
