"""`summary.json`: the demo's figures for a program. The top level is the served recipe's, on the held-out patient."""

from __future__ import annotations

from typing import Any

from histolake.serving.demo.evidence import Evidence, Figures, Recipe

__all__ = ["summarise"]

FIGURES = ("recall_at_5pct", "recall_at_10pct", "pcc_mean", "pcc_mean_predictor")


def summarise(evidence: Evidence) -> dict[str, Any]:
    """The summary's keys, in the order in which a person reads them. A figure that could not be had is None."""
    served = evidence.served
    patients = {section.patient or section.slide_id for section in evidence.published}
    return {
        "data": "simulated" if evidence.simulated else "real",
        "sections": len(evidence.published),
        "patients": len(patients),
        "pairs": sum(section.n_pairs for section in evidence.published),
        "refused_spots": sum(section.n_spots - section.n_pairs for section in evidence.published),
        "genes_surviving_tokenizer": served.genes_surviving_tokenizer,
        "lake_version": evidence.lake_version,
        "shards": evidence.shards,
        **_training(served),
        **_figures(served.figures.get("test")),
        "same_patient": _figures(_same_patient(served)),
        "recipes": {recipe.name: _recipe(recipe) for recipe in evidence.recipes},
        "model_uri": served.model_uri,
        "served_requests": evidence.served_requests,
        "seconds": {step: round(seconds, 2) for step, seconds in evidence.seconds.items()},
    }


def _recipe(recipe: Recipe) -> dict[str, Any]:
    return {
        **_training(recipe),
        **_figures(recipe.figures.get("test")),
        "same_patient": _figures(_same_patient(recipe)),
        "model_uri": recipe.model_uri,
    }


def _training(recipe: Recipe) -> dict[str, Any]:
    return {"train_steps": recipe.train_steps, "loss_first": recipe.loss_first, "loss_last": recipe.loss_last}


def _same_patient(recipe: Recipe) -> Figures | None:
    """The validation side's figures, where it is of a patient that was trained on."""
    validation = recipe.figures.get("validation")
    return validation if validation is not None and validation.same_patient else None


def _figures(figures: Figures | None) -> dict[str, float | None]:
    return {key: getattr(figures, key) if figures is not None else None for key in FIGURES}
