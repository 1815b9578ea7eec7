"""The demo's training runs: train a recipe, or take the version that the same recipe made from the same lake and split.

Also what the report wants to know of a run (its losses), and which of two recipes is the better.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from histolake.platform.splits import Split
from histolake.platform.tracking import TAG_LAKE_URI, TAG_LAKE_VERSION, TAG_SPLIT, TrackingSettings, connect
from histolake.serving.demo.evidence import Figures, Recipe

if TYPE_CHECKING:
    from mlflow import MlflowClient

__all__ = ["Run", "better", "find_run", "train_words"]


@dataclass(frozen=True, kw_only=True)
class Run:
    """One registered version and the run that made it."""

    recipe: str
    name: str
    version: str
    run_id: str
    reused: bool

    @property
    def uri(self) -> str:
        """The version, pinned."""
        return f"models:/{self.name}/{self.version}"


def train_words(recipe: str, lake_uri: str, lake_version: int, split: Split) -> list[str]:
    """The words of the `histolake train` command for this split."""
    words = ["train", recipe, "--lake", lake_uri, "--version", str(lake_version)]
    for side, option in (("train", "--train-slides"), ("validation", "--validation-slides"), ("test", "--test-slides")):
        if split.lists[side]:
            words += [option, ",".join(split.lists[side])]
    return [*words, "--cuts-units"] if split.cuts_units else words


def find_run(
    tracking: TrackingSettings, recipe: str, lake_uri: str, lake_version: int, split: Split, *, reused: bool
) -> Run | None:
    """The newest registered version of this recipe, as it is now, from this lake version and split; None if none is."""
    client = connect(tracking)
    wanted = _params(recipe)
    versions = client.search_model_versions(f"name = '{tracking.model}'", max_results=1000)
    for found in sorted(versions, key=lambda version: -int(version.version)):
        tags = found.tags
        same = (
            tags.get(TAG_LAKE_URI) == lake_uri
            and tags.get(TAG_LAKE_VERSION) == str(lake_version)
            and json.loads(tags.get(TAG_SPLIT, "null")) == split.to_dict()
        )
        if same and found.run_id and wanted.items() <= client.get_run(found.run_id).data.params.items():
            return Run(recipe=recipe, name=found.name, version=str(found.version), run_id=found.run_id, reused=reused)
    return None


def _params(recipe: str) -> dict[str, str]:
    from histolake.training.recipes import as_params, find_recipe

    return {key: str(value) for key, value in as_params(find_recipe(recipe)).items()}


def recipe_evidence(tracking: TrackingSettings, run: Run, lake_version: int, figures: Mapping[str, Figures]) -> Recipe:
    """What the report shows of a run."""
    from histolake.training.recipes import find_recipe

    client = connect(tracking)
    metrics = client.get_run(run.run_id).data.metrics
    loss = _history(client, run.run_id, "loss")
    return Recipe(
        name=run.recipe,
        about=find_recipe(run.recipe).summary,
        model_name=run.name,
        model_version=run.version,
        model_uri=run.uri,
        served=False,
        lake_version=lake_version,
        train_steps=len(loss),
        loss=loss,
        loss_first=metrics.get("loss_first"),
        loss_last=metrics.get("loss_last"),
        genes_surviving_tokenizer=metrics.get("genes_surviving_tokenizer"),
        figures=figures,
    )


def _history(client: MlflowClient, run_id: str, key: str) -> tuple[tuple[int, float], ...]:
    """(step, value), one a step, in the order of the steps."""
    values = {int(metric.step): float(metric.value) for metric in client.get_metric_history(run_id, key)}
    return tuple(sorted(values.items()))


def better(recipes: Sequence[Recipe]) -> tuple[tuple[Recipe, ...], str]:
    """The recipes with the served one marked, and why it is that one, in a sentence.

    The higher Recall@10% on the validation side decides, then Recall@5%, then Pearson's r: retrieval is what both are
    trained for. Without a validation side nothing can be chosen, and the last recipe named is served.
    """
    judged = [recipe for recipe in recipes if _rank(recipe) is not None]
    if not judged:
        chosen = recipes[-1]
        why = f"{chosen.name} is served; no section was left to choose on."
    else:
        chosen = max(judged, key=lambda recipe: _rank(recipe) or ())
        others = ", ".join(f"{_recall(recipe)} for {recipe.name}" for recipe in judged if recipe is not chosen)
        against = f", against {others}" if others else ""
        why = (
            f"{chosen.name} is served: its Recall@10% on the validation side is the higher one, "
            f"{_recall(chosen)}{against}."
        )
    return tuple(replace(recipe, served=recipe is chosen) for recipe in recipes), why


def _rank(recipe: Recipe) -> tuple[float, ...] | None:
    found = recipe.figures.get("validation")
    if found is None or found.recall_at_10pct is None:
        return None
    return tuple(-1.0 if v is None else v for v in (found.recall_at_10pct, found.recall_at_5pct, found.pcc_mean))


def _recall(recipe: Recipe) -> str:
    return f"{recipe.figures['validation'].recall_at_10pct:.1%}"


def evaluation_of(documents: Sequence[Mapping[str, Any]], run: Run, side: str) -> Mapping[str, Any] | None:
    """The document of one model and side from the file of `histolake evaluate --out`."""
    for document in documents:
        first = document["rows"][0]
        if (first["model_name"], str(first["model_version"]), first["side"]) == (run.name, run.version, side):
            return document
    return None
