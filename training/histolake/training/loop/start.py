"""Where a run starts from when not from nothing: a checkpoint file as its authors publish it, or a model of ours."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch

from histolake.platform.errors import ModelError
from histolake.platform.storage import Location
from histolake.training.tokenizers import Tokenizer, check_match

__all__ = ["start_from"]

SHOWN = 3  # weights named in a message


def start_from(weights: str, encoder: torch.nn.Module, tokenizer: Tokenizer) -> None:
    """Fill in weights: a checkpoint file (a path or a URI), a model's folder, or a registered model (`models:/...`).

    Raises `ModelError` where they are of another architecture, or were trained with another tokenizer."""
    found = _of_model(weights, tokenizer) or _of_file(weights)
    own = {name: tuple(value.shape) for name, value in encoder.state_dict().items()}
    theirs = {name: tuple(value.shape) for name, value in found.items()}
    differ = sorted(name for name in {*own, *theirs} if own.get(name) != theirs.get(name))
    if differ:
        more = f" and {len(differ) - SHOWN} more" if len(differ) > SHOWN else ""
        told = ", ".join(f"{name} ({_said(theirs.get(name))}, not {_said(own.get(name))})" for name in differ[:SHOWN])
        raise ModelError(
            f"The weights in {weights} are of another architecture than the recipe's model: {told}{more} differ; "
            "choose the recipe of their size, or set the model's values."
        )
    encoder.load_state_dict(found)


def _said(shape: tuple[int, ...] | None) -> str:
    return "absent" if shape is None else "x".join(map(str, shape)) or "a number"


def _of_model(weights: str, tokenizer: Tokenizer) -> dict[str, torch.Tensor] | None:
    """The weights of a model's folder, or of a registered model; None for anything else."""
    if not weights.startswith(("models:/", "runs:/")) and not (Path(weights) / "model.json").is_file():
        return None
    from safetensors.torch import load_file

    from histolake.platform.settings import load_settings
    from histolake.training.models.files import WEIGHTS_FILE, read_card
    from histolake.training.registry import resolve_model

    folder = resolve_model(weights, load_settings().section("tracking")).path
    check_match(tokenizer, read_card(folder).get("tokenizer_card", {}), f"The model {weights}")
    found: dict[str, torch.Tensor] = load_file(folder / WEIGHTS_FILE)
    return found


def _of_file(weights: str) -> dict[str, torch.Tensor]:
    """The weights of a published checkpoint, by the names that they have inside our encoder."""
    from histolake.training.models.published import read_weights

    place = Location.parse(weights)
    if not place.is_remote:
        return _inside(read_weights(weights))
    with tempfile.TemporaryDirectory(prefix="histolake-weights-") as folder:
        local = Path(folder) / place.name
        place.download(local)
        return _inside(read_weights(local))


def _inside(found: dict[str, torch.Tensor]) -> dict[str, Any]:
    return {f"coca.{name}": value for name, value in found.items()}
