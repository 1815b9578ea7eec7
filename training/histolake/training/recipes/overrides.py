"""One value of a recipe replaced by `--set key=value`, and all of them as a flat table.

`--set steps=400` replaces a value of the recipe, `--set model.embed_dim=256` one of its model's, `--set
objective.spot=0.4` one of its objective's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from typing import Any

from histolake.platform.errors import UsageError
from histolake.training.recipes.catalogue import nearest
from histolake.training.recipes.recipe import Recipe, checked

__all__ = ["as_params", "with_overrides"]

GROUPS = ("model", "objective")
NOT_SET = ("name", "summary", *GROUPS)
# What the objectives take, with their defaults; their classes import torch.
OBJECTIVE_VALUES: Mapping[str, Mapping[str, Any]] = {
    "contrastive": {"printed": False},
    "smoothed": {"squared_norm": 1.0},
    "spot-niche": {"spot": 0.3, "niche": 0.3, "printed": False},
}


def with_overrides(recipe: Recipe, values: Mapping[str, str]) -> Recipe:
    """The recipe with some values replaced; each text is read as the type of the value that it replaces."""
    groups: dict[str, dict[str, Any]] = {group: dict(getattr(recipe, group)) for group in GROUPS}
    now = _settable(recipe)
    changed: dict[str, Any] = {}
    for key, text in values.items():
        if key not in now:
            raise UsageError(f"The recipe {recipe.name} has no value {key!r}{nearest(key, now)}.")
        group, _, name = key.rpartition(".")
        (groups[group] if group else changed)[name] = _read(key, text, now[key])
    return checked(replace(recipe, model=groups["model"], objective=groups["objective"], **changed))


def as_params(recipe: Recipe) -> dict[str, Any]:
    """Every value, flat, as tracked with a run."""
    flat = asdict(replace(recipe, model={}, objective={}))
    del flat["summary"]
    for group in GROUPS:
        del flat[group]
        flat |= {f"{group}.{key}": value for key, value in getattr(recipe, group).items()}
    return {"recipe": flat.pop("name"), **flat}


def _settable(recipe: Recipe) -> dict[str, Any]:
    """Every key that may be set, with its value now."""
    own = {f.name: getattr(recipe, f.name) for f in fields(Recipe) if f.name not in NOT_SET}
    objective = {**OBJECTIVE_VALUES[recipe.objective["kind"]], **recipe.objective}
    del objective["kind"]
    return {
        **own,
        **{f"model.{key}": value for key, value in _model_values(recipe).items()},
        **{f"objective.{key}": value for key, value in objective.items()},
    }


def _model_values(recipe: Recipe) -> dict[str, Any]:
    from histolake.training.models.files import config_defaults

    values = {**config_defaults(recipe.model["architecture"]), **recipe.model}
    # The recipe's own fields, the tokenizer and the lake decide these.
    elsewhere = ("architecture", "image_column", "tokenizer", "vocab_size", "gene_ids")
    return {key: value for key, value in values.items() if key not in elsewhere}


def _read(key: str, text: str, now: Any) -> Any:
    try:
        if isinstance(now, bool):
            return {"true": True, "false": False}[text.lower()]
        return type(now)(text)
    except (ValueError, KeyError) as error:
        raise UsageError(f"{key} is {text!r}; it must be of the type {type(now).__name__}, as {now!r} is.") from error
