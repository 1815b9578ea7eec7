"""The recipes of this package: one TOML file each, in `files/`."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import fields
from importlib.resources import files
from typing import Any

from histolake.platform.errors import UsageError
from histolake.training.models.coca_presets import COCA_PRESETS
from histolake.training.recipes.recipe import Recipe, checked

__all__ = ["RECIPES", "find_recipe", "nearest"]


def _read(name: str, text: str) -> Recipe:
    """A recipe from its file. `preset` in its model stands for a known size (`models.coca_presets`)."""
    values: dict[str, Any] = tomllib.loads(text)
    model = dict(values.pop("model"))
    preset = model.pop("preset", None)
    wide = {each.name for each in fields(Recipe) if isinstance(each.default, float)}  # 20 stands for 20.0
    values = {key: float(value) if key in wide else value for key, value in values.items()}
    return checked(Recipe(name=name, model={**(COCA_PRESETS[preset] if preset else {}), **model}, **values))


def _all() -> Mapping[str, Recipe]:
    found = [file for file in files(__package__).joinpath("files").iterdir() if file.name.endswith(".toml")]
    read = (_read(file.name.removesuffix(".toml"), file.read_text(encoding="utf-8")) for file in found)
    return {recipe.name: recipe for recipe in sorted(read, key=lambda recipe: recipe.name)}


RECIPES: Mapping[str, Recipe] = _all()


def find_recipe(name: str) -> Recipe:
    """The recipe of that name; raises `UsageError` that names the nearest."""
    if name not in RECIPES:
        raise UsageError(f"There is no recipe {name!r}{nearest(name, RECIPES)}; `histolake recipes` lists them.")
    return RECIPES[name]


def nearest(name: str, known: Iterable[str]) -> str:
    """What may have been meant, as a clause; empty where nothing is near."""
    found = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {found[0]!r}?)" if found else ""
