"""The report's reading in words, made from the figures: what was learned, what was not, and how sure that is.

A recall is a share of n patches, so its standard error is about sqrt(p (1 - p) / n). Spots of one section are
neighbours and not independent, which makes the true error larger; two standard errors is therefore the least that
counts as a difference, and a section is still one section.
"""

from __future__ import annotations

from math import sqrt

from histolake.serving.demo.evidence import Evidence, Figures, Recipe

__all__ = ["read_figures"]

FOUND_PCC = 0.3  # correlation from which a class map is said to follow its markers
SMALL_PCC = 0.03  # difference of mean correlations below which two methods are called level


def read_figures(evidence: Evidence) -> list[str]:
    """Sentences for the top of the report, most important first."""
    served = evidence.served
    test, validation = served.figures.get("test"), served.figures.get("validation")
    words = []
    if evidence.simulated:
        words.append(
            "The sections are simulated: their domains, mixtures and texture were drawn by a program. The figures show "
            "that the road works from end to end; they say nothing about tissue."
        )
    words += [*_retrieval(test, _where(evidence, test)), *_prediction(test, _where(evidence, test))]
    if not words or (test is None and validation is None):
        words.append("There are too few patients and sections to hold any out, so no figure of quality could be had.")
    if validation is not None:
        words.append(_validation(validation, test))
    words += _annotation(evidence)
    words.append(_recipes(evidence))
    words.append(_size(evidence))
    return words


def _where(evidence: Evidence, figures: Figures | None) -> str:
    if figures is None:
        return ""
    names = ", ".join(slide_id.rsplit("/", 1)[-1] for slide_id in figures.slide_ids)
    return f"On {names}, {'the same patient' if figures.same_patient else 'a patient that training never saw'}"


def _retrieval(figures: Figures | None, where: str) -> list[str]:
    if figures is None or figures.recall_at_10pct is None:
        return []
    recall = figures.recall_at_10pct
    text = f"{where}: the profile that belongs to a patch is among the best tenth for {recall:.0%} of the patches"
    if figures.chance_at_10pct is not None:
        text += f", {_beside(recall, figures.chance_at_10pct, figures.n_pairs)} chance ({figures.chance_at_10pct:.0%})"
    if figures.cca_at_10pct is not None:
        text += (
            f" and {_beside(recall, figures.cca_at_10pct, figures.n_pairs)} a linear CCA ({figures.cca_at_10pct:.0%})"
        )
    return [text + "."]


def _beside(value: float, other: float, n: int) -> str:
    error = sqrt(max(value * (1 - value), other * (1 - other), 1e-9) / max(n, 1))
    if value - other > 2 * error:
        return "better than"
    return "worse than" if other - value > 2 * error else "not distinguishable from"


def _prediction(figures: Figures | None, where: str) -> list[str]:
    if figures is None or figures.pcc_mean is None:
        return []
    text = f"{where}: predicted and measured expression correlate with r = {figures.pcc_mean:.2f} on the average gene"
    if figures.pcc_ridge is not None:
        text += (
            f", {_level(figures.pcc_mean, figures.pcc_ridge)} ridge on frozen image features ({figures.pcc_ridge:.2f})"
        )
    if figures.pcc_mean_predictor is not None:
        text += f"; predicting every gene's mean gives {figures.pcc_mean_predictor:.2f}"
    return [text + "."]


def _level(value: float, other: float) -> str:
    if abs(value - other) < SMALL_PCC:
        return "level with"
    return "better than" if value > other else "worse than"


def _validation(validation: Figures, test: Figures | None) -> str:
    names = ", ".join(slide_id.rsplit("/", 1)[-1] for slide_id in validation.slide_ids)
    shares = "shares its patient with the training sections and was" if validation.same_patient else "was"
    figure = ""
    if validation.recall_at_10pct is not None:
        beside = "" if validation.cca_at_10pct is None else f", linear CCA {validation.cca_at_10pct:.0%}"
        figure = f" (Recall@10% {validation.recall_at_10pct:.0%}{beside})"
    text = f"{names}{figure} {shares} used to choose between the recipes, so its figures flatter the model"
    return text + (", and those of the test side do not." if test is not None else ".")


def _annotation(evidence: Evidence) -> list[str]:
    known = [one for one in evidence.classes if one.pcc is not None]
    if not known:
        return []
    best = max(known, key=lambda one: one.pcc or 0.0)
    found = [one for one in known if (one.pcc or 0.0) >= FOUND_PCC]
    name = best.slide_id.rsplit("/", 1)[-1]
    return [
        f"Marker sentences: in {len(found)} of {len(known)} maps the score of a class follows its measured markers "
        f"with r of {FOUND_PCC} or more; the best is {best.name} on {name} (r = {best.pcc:.2f})."
    ]


def _recipes(evidence: Evidence) -> str:
    falls = [_fall(recipe) for recipe in evidence.recipes]
    return f"{evidence.chosen_because} {' '.join(fall for fall in falls if fall)}".strip()


def _fall(recipe: Recipe) -> str:
    if recipe.loss_first is None or recipe.loss_last is None:
        return ""
    change = "fell" if recipe.loss_last < recipe.loss_first else "did not fall"
    fall = f"{recipe.loss_first:.2f} to {recipe.loss_last:.2f} in {recipe.train_steps} steps"
    return f"The loss of {recipe.name} {change}: {fall}."


def _size(evidence: Evidence) -> str:
    pairs = sum(section.n_pairs for section in evidence.published if section.side == "train")
    sections = sum(1 for section in evidence.published if section.side == "train")
    patients = len({section.patient for section in evidence.published if section.side == "train"})
    return (
        f"All of it was learned from {pairs:,} pairs of {_count(sections, 'section')} of "
        f"{_count(patients, 'patient')}. That is enough to see every part work, and far too "
        "little to trust a prediction."
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
