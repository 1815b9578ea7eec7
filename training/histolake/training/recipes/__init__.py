"""What can be trained: a recipe is a short file of this package, read into a frozen record."""

from __future__ import annotations

from histolake.training.recipes.catalogue import RECIPES, find_recipe
from histolake.training.recipes.overrides import as_params, with_overrides
from histolake.training.recipes.recipe import Recipe

__all__ = ["RECIPES", "Recipe", "as_params", "find_recipe", "with_overrides"]
