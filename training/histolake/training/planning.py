"""From a request to a plan: all that is counted or chosen from the lake, once, before any worker starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from histolake.platform.errors import UsageError
from histolake.platform.splits import BLOCKS, Selection, Split
from histolake.training.loop import TrainPlan
from histolake.training.preflight import try_out
from histolake.training.recipes import Recipe

if TYPE_CHECKING:
    from histolake.platform.lake import Snapshot

__all__ = ["make_plan"]


def make_plan(
    recipe: Recipe,
    pairs: Selection,
    split: Split,
    sides: Mapping[str, str],
    *,
    workers: int,
    run_name: str,
    storage: str,
    max_failures: int,
    say: Callable[[str], None] = lambda line: None,
) -> TrainPlan:
    """The plan of a run over `pairs`, the training side. Raises `UsageError` or `ModelError` for what could only fail
    in the workers: no genes to read, weights of another architecture, a side that is asked for and empty."""
    from histolake.training.models.files import config_defaults

    snapshot = pairs.snapshot
    validation = Selection.of(snapshot, split, sides, "validation")
    if recipe.publish == "best" and not validation.slide_ids:
        raise UsageError(
            "The best checkpoint is to be published, and the validation side of the split has no slides to judge by; "
            "name some, or --set publish=last."
        )
    gene_ids: tuple[int, ...] = ()
    if "gene_ids" in config_defaults(recipe.model["architecture"]):
        from histolake.training.gene_choice import variable_genes

        gene_ids = tuple(variable_genes(pairs, recipe.genes).tolist())
        if not gene_ids:
            raise UsageError("No gene is expressed in a fifth of the training spots and varies; train on other slides.")
        say(f"{len(gene_ids)} of the most variable genes are read of each profile")
    plan = TrainPlan(
        recipe=recipe,
        lake_uri=snapshot.lake.uri,
        lake_version=snapshot.version,
        slide_ids=pairs.slide_ids,
        validation_ids=validation.slide_ids,
        blocks=split if split.kind == BLOCKS else None,
        steps=_steps(recipe, pairs),
        workers=workers,
        run_name=run_name,
        storage=storage,
        gene_ids=gene_ids,
        symbols=_symbols(snapshot) if recipe.tokenizer == "gene" else (),
        kin=_kin(snapshot) if recipe.ignore_kin else {},
        weights=recipe.weights,
        max_failures=max_failures,
    )
    try_out(plan, pairs)
    return plan


def _steps(recipe: Recipe, pairs: Selection) -> int:
    if not recipe.epochs:
        return recipe.steps
    return max(1, round(recipe.epochs * (pairs.n_pairs // recipe.global_batch)))


def _symbols(snapshot: Snapshot) -> tuple[str, ...]:
    """The lake's symbols in the order of their ids, each once."""
    return tuple(dict.fromkeys(symbol for symbol in snapshot.lake.genes()["symbol"].to_pylist() if symbol))


def _kin(snapshot: Snapshot) -> dict[str, int]:
    """A number that slides share with all that look like them, and like those."""
    from histolake.platform.splits.placing import resembling

    alike = resembling(snapshot.slides().select(["slide_id", "look_alikes"]).to_pylist())
    number: dict[str, int] = {}
    for slide_id in sorted(alike):
        todo = [slide_id] if slide_id not in number else []
        while todo:
            here = todo.pop()
            if here not in number:
                number[here] = number.get(slide_id, len(number))
                todo += alike[here]
    return number
