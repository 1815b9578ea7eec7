"""Recipes: what is trained, on which column, for how long. A recipe is a short, frozen record, not a thousand flags.

`--set key=value` replaces one field (`--set steps=400`) or one of the model's (`--set model.embed_dim=256`).
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from histolake.platform.errors import UsageError
from histolake.training.models.coca_presets import COCA_PRESETS

__all__ = ["RECIPES", "Recipe", "find_recipe", "with_overrides"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One way to train one model."""

    name: str
    summary: str  # one line for `histolake recipes`
    model: Mapping[str, Any]  # "architecture", and that architecture's configuration
    image_column: str = "niche_image"  # spot_image | niche_image
    tokenizer: str = "bpe"
    steps: int = 200  # optimiser steps
    global_batch: int = 64  # pairs a step, over all workers
    lr: float = 1e-3  # peak learning rate
    weight_decay: float = 0.1  # AdamW's, on matrices only
    beta2: float = 0.98  # AdamW's second moment
    warmup_steps: int = 10
    clip_norm: float = 1.0  # largest norm of the gradient
    stain: float = 0.0  # augmentation: standard deviation of the log gain of each stain
    density: float = 0.0  # augmentation: relative standard deviation of the whole optical density
    stop_after: int = 0  # steps after which a run ends early, to be resumed; 0 goes through
    seed: int = 0
    checkpoint_every: int = 100  # steps
    window_rows: int = 4096  # rows that are shuffled among themselves
    threads: int = 0  # of torch in each worker; 0 divides the machine's cores among the workers

    @property
    def image_px(self) -> int:
        """Width of the model's input, pixels."""
        return int(self.model["image_px"])

    @property
    def context(self) -> int:
        """Tokens of a sentence that the model reads."""
        return int(self.model["context"])

    def encoder_config(self, vocab_size: int) -> dict[str, Any]:
        """The model's configuration with what it reads: the picture's column, the tokenizer and its vocabulary."""
        read = {"image_column": self.image_column, "tokenizer": self.tokenizer, "vocab_size": vocab_size}
        return {**self.model, **read}


_COCA = Recipe(
    name="coca-tiny",
    summary="OmiCLIP from scratch: open_clip's CoCa, the ViT-L/14 family at CPU size",
    model={
        "architecture": "coca",
        **COCA_PRESETS["tiny"],
        "patch_dropout": 0.3,
        "init_temperature": 0.1,
    },
    steps=240,
    global_batch=64,
    lr=5e-4,
    warmup_steps=20,
    stain=0.1,
    density=0.05,
)

_CLIP = Recipe(
    name="clip-lite0",
    summary="CLIP on a frozen EfficientNet-Lite0 with packaged ImageNet weights: learns from a few hundred pairs",
    model={
        "architecture": "clip-lite",
        "embed_dim": 128,
        "image_px": 128,
        "image_hidden": 256,
        "image_dropout": 0.5,
        "text_width": 128,
        "text_dropout": 0.3,
        "context": 76,
        "init_temperature": 0.1,
    },
    steps=80,
    global_batch=128,
    lr=2e-3,
    warmup_steps=10,
)

RECIPES: dict[str, Recipe] = {recipe.name: recipe for recipe in (_CLIP, _COCA)}


def find_recipe(name: str) -> Recipe:
    """The recipe of that name; raises `UsageError` that names the nearest."""
    if name not in RECIPES:
        raise UsageError(f"There is no recipe {name!r}{_nearest(name, RECIPES)}; `histolake recipes` lists them.")
    return RECIPES[name]


def with_overrides(recipe: Recipe, values: Mapping[str, str]) -> Recipe:
    """The recipe with some values replaced; each text is read as the type of the value that it replaces."""
    model = dict(recipe.model)
    changed: dict[str, Any] = {}
    known = [f.name for f in fields(Recipe) if f.name not in ("name", "summary", "model")]
    allowed = [*known, *(f"model.{key}" for key in _model_fields(recipe))]
    for key, text in values.items():
        if key not in allowed:
            raise UsageError(f"The recipe {recipe.name} has no value {key!r}{_nearest(key, allowed)}.")
        if key.startswith("model."):
            name = key.removeprefix("model.")
            model[name] = _read(key, text, _model_fields(recipe)[name])
        else:
            changed[key] = _read(key, text, getattr(recipe, key))
    return check(replace(recipe, model=model, **changed))


def check(recipe: Recipe) -> Recipe:
    """The recipe, if its values can be; raises `UsageError` that lists all that cannot."""
    faults = [
        f"{name} is {getattr(recipe, name)} and must be at least {least}"
        for name, least in (
            ("steps", 1),
            ("global_batch", 2),
            ("warmup_steps", 0),
            ("checkpoint_every", 1),
            ("seed", 0),
        )
        if getattr(recipe, name) < least
    ]
    if recipe.image_column not in ("spot_image", "niche_image"):
        faults.append(f"image_column is {recipe.image_column!r} and must be spot_image or niche_image")
    if faults:
        raise UsageError(f"The recipe {recipe.name} cannot be used: {'; '.join(faults)}.")
    return recipe


def as_params(recipe: Recipe) -> dict[str, Any]:
    """Every value, flat, as tracked with a run."""
    flat = asdict(replace(recipe, model={}))
    del flat["model"], flat["summary"]
    return {"recipe": flat.pop("name"), **flat, **{f"model.{key}": value for key, value in recipe.model.items()}}


def _model_fields(recipe: Recipe) -> dict[str, Any]:
    """What may be set of the recipe's model, with its value now."""
    from histolake.training.models.files import config_defaults

    values = {**config_defaults(recipe.model["architecture"]), **recipe.model}
    # The recipe's own fields and the tokenizer decide these.
    elsewhere = ("architecture", "image_column", "tokenizer", "vocab_size")
    return {key: value for key, value in values.items() if key not in elsewhere}


def _read(key: str, text: str, now: Any) -> Any:
    try:
        if isinstance(now, bool):
            return {"true": True, "false": False}[text.lower()]
        return type(now)(text)
    except (ValueError, KeyError) as error:
        raise UsageError(f"{key} is {text!r}; it must be of the type {type(now).__name__}, as {now!r} is.") from error


def _nearest(name: str, known: Any) -> str:
    found = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {found[0]!r}?)" if found else ""
