"""summary.json: exactly the keys that are promised, and null where a figure could not be had."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

from histolake.serving.demo.summary import summarise

spec = spec_from_file_location("demo_evidence", Path(__file__).parent / "demo_evidence.py")
assert spec and spec.loader
generator = module_from_spec(spec)
spec.loader.exec_module(generator)

KEYS = {
    "data", "sections", "patients", "pairs", "refused_spots", "genes_surviving_tokenizer", "lake_version", "shards",
    "train_steps", "loss_first", "loss_last", "recall_at_5pct", "recall_at_10pct", "pcc_mean", "pcc_mean_predictor",
    "same_patient", "recipes", "model_uri", "served_requests", "seconds",
}  # fmt: skip
FIGURES = {"recall_at_5pct", "recall_at_10pct", "pcc_mean", "pcc_mean_predictor"}


def test_the_keys_are_the_promised_ones() -> None:
    summary = json.loads(json.dumps(summarise(generator.make())))
    assert set(summary) == KEYS
    assert set(summary["same_patient"]) == FIGURES
    assert set(summary["recipes"]) == {"coca-tiny", "clip-lite0"}
    for recipe in summary["recipes"].values():
        assert set(recipe) >= FIGURES and set(recipe["same_patient"]) == FIGURES


def test_the_top_level_is_the_served_recipe_on_the_test_side() -> None:
    evidence = generator.make()
    summary = summarise(evidence)
    test = evidence.served.figures["test"]
    assert summary["recall_at_10pct"] == test.recall_at_10pct == summary["recipes"]["clip-lite0"]["recall_at_10pct"]
    assert summary["pcc_mean"] == test.pcc_mean != summary["same_patient"]["pcc_mean"]
    assert summary["data"] == "real" and summarise(generator.make(simulated=True))["data"] == "simulated"


def test_counts_are_of_published_sections() -> None:
    summary = summarise(generator.make())
    assert (summary["sections"], summary["patients"]) == (5, 2)
    assert summary["refused_spots"] == 20


def test_a_figure_that_could_not_be_had_is_null() -> None:
    evidence = generator.make()
    recipes = tuple(replace(r, figures={"validation": r.figures["validation"]}) for r in evidence.recipes)
    summary = summarise(replace(evidence, recipes=recipes))
    assert all(summary[key] is None for key in FIGURES)
    assert summary["same_patient"]["pcc_mean"] is not None


def test_a_validation_side_of_another_patient_is_not_called_same_patient() -> None:
    evidence = generator.make()
    recipes = tuple(
        replace(r, figures={side: replace(f, same_patient=False) for side, f in r.figures.items()})
        for r in evidence.recipes
    )
    summary = summarise(replace(evidence, recipes=recipes))
    assert all(value is None for value in summary["same_patient"].values())
