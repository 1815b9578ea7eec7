"""The state of a run in a folder: written by the first worker, read by all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from histolake.platform.errors import ModelError

__all__ = ["CHECKPOINT_FILE", "load_state", "read_state", "save_state"]

CHECKPOINT_FILE = "state.pt"


def save_state(
    folder: Path, *, step: int, encoder: torch.nn.Module, optimizer: torch.optim.Optimizer, config: Mapping[str, Any]
) -> None:
    """Write all that a run goes on from: the steps done, the weights, the optimiser, and of which model they are.

    Raises `ModelError` where the disk does not take it."""
    state = {"step": step, "config": dict(config), "encoder": encoder.state_dict(), "optimizer": optimizer.state_dict()}
    try:
        torch.save(state, folder / CHECKPOINT_FILE)
    except (OSError, RuntimeError) as error:
        raise ModelError(
            f"The checkpoint after step {step} could not be written to {folder} ({error}); make room there (TMPDIR "
            "names another place) and run the same command again to go on from the checkpoint before."
        ) from error


def read_state(folder: str | Path) -> dict[str, Any]:
    """The state in a folder, on the CPU."""
    state: dict[str, Any] = torch.load(Path(folder) / CHECKPOINT_FILE, map_location="cpu", weights_only=True)
    return state


def load_state(
    state: Mapping[str, Any], *, encoder: torch.nn.Module, optimizer: torch.optim.Optimizer, config: Mapping[str, Any]
) -> int:
    """Fill in a state; gives the step to go on with. Raises `ModelError` for the state of another model."""
    differ = sorted(key for key in {*state["config"], *config} if state["config"].get(key) != config.get(key))
    if differ:
        raise ModelError(
            f"The checkpoint that this run would go on from is of another model: {', '.join(differ)} differ; give the "
            "run another name or storage, or the recipe the values that it began with."
        )
    encoder.load_state_dict(state["encoder"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])
