"""A model as a folder: `model.json` (its card) and `weights.safetensors`, with `reference/` beside them, and where its
tokenizer has a vocabulary of its own, that as `vocabulary.txt`.

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
from histolake.training.inputs import Sentence, inputs_to_card
from histolake.training.models.base import Model
from histolake.training.models.bleep import BleepConfig, build_bleep
from histolake.training.models.clip_fc import ClipFcConfig, build_clip_fc
from histolake.training.models.clip_lite import ClipLiteConfig, build_clip_lite
from histolake.training.models.coca import CocaConfig, build_coca
from histolake.training.models.frozen.weights import RANDOM
from histolake.training.models.no_sentences import NoSentences
from histolake.training.models.st_align.model import StAlignConfig, build_st_align
from histolake.training.tokenizers import Tokenizer, check_match, make_tokenizer, tokenizer_from_card

__all__ = [
    "ARCHITECTURES",
    "FORMAT",
    "FORMAT_VERSION",
    "build_encoder",
    "load_encoder",
    "load_model",
    "model_digest",
    "save_model",
]

FORMAT = "histolake-model"
FORMAT_VERSION = 1
CARD_FILE = "model.json"
WEIGHTS_FILE = "weights.safetensors"
VOCABULARY_FILE = "vocabulary.txt"  # one symbol a line; the card has its digest

ARCHITECTURES: dict[str, Callable[[Mapping[str, Any]], nn.Module]] = {
    "coca": build_coca,
    "clip-lite": build_clip_lite,
    "st-align": build_st_align,
    "clip-fc": build_clip_fc,
    "bleep": build_bleep,
}

_CONFIGS: dict[str, type[Any]] = {
    "coca": CocaConfig,
    "clip-lite": ClipLiteConfig,
    "st-align": StAlignConfig,
    "clip-fc": ClipFcConfig,
    "bleep": BleepConfig,
}


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
    except (TypeError, ValueError, AssertionError) as error:  # of torch or open_clip, of values that do not go together
        raise ModelError(f"A configuration of {name} cannot be used: {str(error).rstrip('.')}.") from error


def save_model(folder: str | Path, encoder: Any, card: Mapping[str, Any]) -> Path:
    """Write the card and the weights into `folder`, which is made; gives the folder. The encoder's inputs go into the
    card with it; `ModelError` where the card says otherwise.

    `card["tokenizer_card"]` is the tokenizer's own (`Tokenizer.card()`); a tokenizer with a vocabulary needs it."""
    from safetensors.torch import save_file

    folder = Path(folder)
    column, read = card.get("image_column"), [one.key for one in encoder.inputs]
    if column is not None and column not in read:
        raise ModelError(f"The card says that the model reads {column}, but its encoder reads {', '.join(read)}.")
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in encoder.state_dict().items()}
    save_file(state, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    full = {"format": FORMAT, "format_version": FORMAT_VERSION, **card, **_withheld(encoder)}
    full["inputs"] = inputs_to_card(encoder.inputs)
    if "image_weights" in full.get("config", {}):  # where a file lay on one machine is no part of a model
        full["config"] = {name: value for name, value in full["config"].items() if name != "image_weights"}
    if "tokenizer_card" in full:
        own = dict(full["tokenizer_card"])
        if vocabulary := own.pop("vocabulary", None):
            (folder / VOCABULARY_FILE).write_text("\n".join(vocabulary), encoding="utf-8", newline="\n")
        full["tokenizer_card"] = own
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
    if digest := card.get("tokenizer_card", {}).get("vocabulary_digest"):
        deciding["vocabulary_digest"] = digest
    if "withheld" in card:
        deciding["withheld"] = card["withheld"]
    with weights.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256")
    found.update(json.dumps(deciding, sort_keys=True).encode())
    return found.hexdigest()


def load_model(folder: str | Path, device: str = "cpu", *, files: Mapping[str, str] | None = None) -> Model:
    """The model in a folder, ready to embed; `files` as in `load_encoder`. Raises `ModelError` where card and weights
    don't fit each other."""
    encoder, card = load_encoder(folder, files=files)
    if not any(isinstance(one, Sentence) for one in encoder.inputs):
        return Model(encoder=encoder, tokenizer=NoSentences(), card=card, device=device)
    tokenizer = _tokenizer_of(Path(folder), card)
    check_tokenizer(tokenizer, encoder, _config_of(card), f"The model in {folder}")
    return Model(encoder=encoder, tokenizer=tokenizer, card=card, device=device)


def load_encoder(folder: str | Path, *, files: Mapping[str, str] | None = None) -> tuple[Any, dict[str, Any]]:
    """The network in a folder with its weights, and the card.

    Gated weights are not in the folder. Their file is the one of `files`, by the field of the configuration that named
    it (`{"image_weights": "uni.bin"}`), else the one in the folder of the settings; it must be the very file that the
    model was trained with.
    """
    from safetensors.torch import load_file

    card = read_card(folder)
    encoder = build_encoder(_config_of(card))
    weights = Path(folder) / WEIGHTS_FILE
    if not weights.is_file():
        raise ModelError(f"{folder} has no {WEIGHTS_FILE}.")
    try:
        encoder.load_state_dict(load_file(weights))
    except RuntimeError as error:
        raise ModelError(f"The weights in {folder} are of another architecture than its card says: {error}") from error
    for field_name, kept in card.get("withheld", {}).items():
        frozen = encoder.frozen[field_name]
        frozen.load_weights((files or {}).get(field_name, ""))
        if frozen.digest != kept["sha256"]:
            raise ModelError(
                f"The model in {folder} was trained with another weight file of {kept['encoder']!r} (SHA-256 "
                f"{kept['sha256'][:12]}...) than the one that was found ({frozen.digest[:12]}...); name that file."
            )
    return encoder, card


def _withheld(encoder: nn.Module) -> dict[str, Any]:
    """What the card says of gated weights, which stay out of the folder."""
    kept: dict[str, dict[str, str]] = {}
    for field_name, frozen in getattr(encoder, "frozen", {}).items():
        if frozen.withheld:
            if frozen.digest in ("", RANDOM):
                raise ModelError(
                    f"A model whose image encoder {frozen.name!r} has {frozen.digest or 'no'} weights cannot be saved: "
                    "they are left out of the folder, and there is no file to load them from again."
                )
            kept[field_name] = {"encoder": frozen.name, "sha256": frozen.digest}
    return {"withheld": kept} if kept else {}


def check_tokenizer(
    tokenizer: Tokenizer, encoder: Any, config: Mapping[str, Any], what: str = "The checkpoint"
) -> None:
    """Raise `ModelError` where the tokenizer's ids are not those that the encoder, built from `config`, reads."""
    for one in encoder.inputs:
        if isinstance(one, Sentence):
            vocab_size = {**config_defaults(config["architecture"]), **config}.get("vocab_size")
            check_match(tokenizer, {"name": one.tokenizer, "context": one.context, "vocab_size": vocab_size}, what)


def _config_of(card: Mapping[str, Any]) -> dict[str, Any]:
    """The card's configuration; what an older one leaves to the card about the model's inputs is filled in."""
    config = dict(card["config"])
    known = _CONFIGS.get(config.get("architecture", ""))
    names = {field.name for field in fields(known)} if known else set()
    read = {key: card[key] for key in card if key in ("image_column", "tokenizer") and key in names}
    return {**read, **config}


def _tokenizer_of(folder: Path, card: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer that the model was trained with."""
    if "tokenizer_card" not in card:
        return make_tokenizer(card["tokenizer"], card["context"])
    own = dict(card["tokenizer_card"])
    vocabulary = folder / VOCABULARY_FILE
    if "vocabulary_digest" in own:
        if not vocabulary.is_file():
            raise ModelError(f"{folder} has no {VOCABULARY_FILE}, which its tokenizer needs; publish the model again.")
        own["vocabulary"] = vocabulary.read_text(encoding="utf-8").split("\n")
    return tokenizer_from_card(own)
