"""A model as a folder: `model.json` (its card) and `weights.safetensors`, with `reference/` beside them.

The folder is a promise: name and version of the format are in the card, and a card of another version is refused by
name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from torch import nn

from histolake.platform.errors import ModelError
from histolake.training.models.base import Model
from histolake.training.models.clip_lite import ClipLiteConfig, build_clip_lite
from histolake.training.models.coca import CocaConfig, build_coca
from histolake.training.tokenizers import make_tokenizer

__all__ = ["ARCHITECTURES", "FORMAT", "FORMAT_VERSION", "build_encoder", "load_model", "model_digest", "save_model"]

FORMAT = "histolake-model"
FORMAT_VERSION = 1
CARD_FILE = "model.json"
WEIGHTS_FILE = "weights.safetensors"

ARCHITECTURES: dict[str, Callable[[Mapping[str, Any]], nn.Module]] = {"coca": build_coca, "clip-lite": build_clip_lite}

_CONFIGS: dict[str, type[Any]] = {"coca": CocaConfig, "clip-lite": ClipLiteConfig}


def config_defaults(architecture: str) -> dict[str, Any]:
    """Every field of an architecture's configuration with its default."""
    return {field.name: field.default for field in fields(_CONFIGS[architecture])}


def build_encoder(config: Mapping[str, Any]) -> Any:
    """A fresh encoder of `config["architecture"]`; the other keys are its configuration."""
    settings = dict(config)
    name = settings.pop("architecture", None)
    if name not in ARCHITECTURES:
        raise ModelError(f"There is no architecture {name!r}; there are {', '.join(ARCHITECTURES)}.")
    try:
        return ARCHITECTURES[name](settings)
    except TypeError as error:
        raise ModelError(f"A configuration of {name} cannot be used: {error}.") from error


def save_model(folder: str | Path, encoder: nn.Module, card: Mapping[str, Any]) -> Path:
    """Write the card and the weights into `folder`, which is made; gives the folder."""
    from safetensors.torch import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in encoder.state_dict().items()}
    save_file(state, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    full = {"format": FORMAT, "format_version": FORMAT_VERSION, **card}
    (folder / CARD_FILE).write_text(json.dumps(full, indent=1, allow_nan=False), encoding="utf-8")
    return folder


def read_card(folder: str | Path) -> dict[str, Any]:
    """The card of a model folder; raises `ModelError` if there is none that can be read."""
    path = Path(folder) / CARD_FILE
    if not path.is_file():
        raise ModelError(f"{folder} is no model folder: it has no {CARD_FILE}.")
    card: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if (card.get("format"), card.get("format_version")) != (FORMAT, FORMAT_VERSION):
        raise ModelError(
            f"{path} is {card.get('format')!r} version {card.get('format_version')!r}; "
            f"this histolake reads {FORMAT!r} version {FORMAT_VERSION}."
        )
    return card


def model_digest(folder: str | Path) -> str:
    """A hash of all that decides which vectors a model folder gives: weights, architecture, and how a pair is read."""
    card = read_card(folder)
    weights = Path(folder) / WEIGHTS_FILE
    if not weights.is_file():
        raise ModelError(f"{folder} has no {WEIGHTS_FILE}.")
    deciding = {name: card.get(name) for name in ("config", "tokenizer", "context", "image_column", "image_px")}
    with weights.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256")
    found.update(json.dumps(deciding, sort_keys=True).encode())
    return found.hexdigest()


def load_model(folder: str | Path, device: str = "cpu") -> Model:
    """The model in a folder, ready to embed. Raises `ModelError` where card and weights don't fit each other."""
    from safetensors.torch import load_file

    card = read_card(folder)
    encoder = build_encoder(card["config"])
    weights = Path(folder) / WEIGHTS_FILE
    if not weights.is_file():
        raise ModelError(f"{folder} has no {WEIGHTS_FILE}.")
    try:
        encoder.load_state_dict(load_file(weights))
    except RuntimeError as error:
        raise ModelError(f"The weights in {folder} are of another architecture than its card says: {error}") from error
    return Model(
        encoder=encoder, tokenizer=make_tokenizer(card["tokenizer"], card["context"]), card=card, device=device
    )
