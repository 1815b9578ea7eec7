"""What `histolake recipes` says that training costs."""

from __future__ import annotations

import json
from typing import Any

import pytest
from typer.testing import CliRunner

from histolake.platform.cli import app
from histolake.platform.errors import UsageError
from histolake.training.cost import cost_of, known_costs
from histolake.training.recipes import RECIPES, find_recipe


def listed(*words: str) -> list[dict[str, Any]]:
    done = CliRunner().invoke(app, ["recipes", *words, "--json"])
    assert done.exit_code == 0, done.exception
    rows: list[dict[str, Any]] = json.loads(done.stdout)
    return rows


def test_costs_beside_the_recipes_are_those_that_are_counted() -> None:
    counted = {name: cost_of(recipe) for name, recipe in RECIPES.items()}
    assert counted == known_costs(), "`python -m histolake.training.cost` writes them anew"


def test_recipes_are_listed_with_what_they_cost() -> None:
    rows = {row["name"]: row for row in listed()}
    assert sorted(rows) == list(rows) == sorted(RECIPES)
    assert all(isinstance(value, str | int | float | bool) for row in rows.values() for value in row.values())
    # open_clip's model profile: coca_ViT-L-14 has 638.45 M parameters.
    assert rows["omiclip"]["parameters_m"] == pytest.approx(638.45, rel=2e-3)
    assert rows["omiclip"]["memory_gb"] > 10 * rows["coca-tiny"]["memory_gb"]


def test_a_recipe_is_counted_as_it_is_changed() -> None:
    (plain,) = listed("coca-tiny")
    (shared,) = listed("coca-tiny", "--workers", "2")
    (large,) = listed("coca-tiny", "--set", "global_batch=512")
    assert plain == next(row for row in listed() if row["name"] == "coca-tiny")
    assert shared["memory_gb"] < plain["memory_gb"] < large["memory_gb"] and large["global_batch"] == 512
    assert shared["gflop_per_pair"] == plain["gflop_per_pair"] == large["gflop_per_pair"]
    (cached,) = listed("coca-tiny", "--set", "global_batch=512", "--set", "chunk_rows=64")
    assert cached["memory_gb"] == plain["memory_gb"]


def test_a_change_wants_a_recipe() -> None:
    done = CliRunner().invoke(app, ["recipes", "--set", "lr=1"])
    assert isinstance(done.exception, UsageError) and "change one recipe; name it" in str(done.exception)
    table = CliRunner().invoke(app, ["recipes", "st-align-tiny"]).stdout
    assert find_recipe("st-align-tiny").summary[:20] in table and "gpu_hours_per_million_pairs" in table
