"""Commands of training: `histolake recipes`, `histolake train`, `histolake models`."""

from __future__ import annotations

import math
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from histolake.platform.commands import JsonFlag, LakeOption, VersionOption, WhereOption, show

if TYPE_CHECKING:
    from histolake.platform.splits import Split
    from histolake.platform.tracking import TrackingSettings

__all__ = ["models", "recipes", "train"]

ChangesOption = Annotated[
    list[str] | None, typer.Option("--set", help="key=value of the recipe, repeatable.", metavar="KEY=VALUE")
]
TrackingOption = Annotated[
    str | None, typer.Option("--tracking", help="MLflow tracking URI; the setting tracking.uri if not given.")
]

models = typer.Typer(
    name="models",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="List registered models, promote one, or trace one to the slides that it saw.",
)


def recipes(
    recipe: Annotated[str | None, typer.Argument(help="One recipe: all its values, and what it costs.")] = None,
    changes: ChangesOption = None,
    workers: Annotated[int, typer.Option(help="Training workers that share the batch.", min=1)] = 1,
    as_json: JsonFlag = False,
) -> None:
    """List what can be trained, with size, memory and cost; or show one recipe, as it is or changed.

    Memory is that of one training worker in a step, GB. Cost is operations a pair (10^9, forward and backward), and
    hours of an H100 or H200 for a million pairs at 40% of what its data sheet says. All is counted from the model and
    not measured. `--json` shows every value of every recipe.

    Example: `histolake recipes omiclip --set global_batch=1024 --workers 8`
    """
    from histolake.platform.errors import UsageError
    from histolake.training.cost import Cost, cost_of, known_costs
    from histolake.training.recipes import RECIPES, as_params, find_recipe, with_overrides

    if recipe is None and (changes or workers > 1):
        raise UsageError("--set and --workers change one recipe; name it: `histolake recipes omiclip --workers 8`.")
    rows = []
    for each in [find_recipe(recipe)] if recipe else RECIPES.values():
        wanted = with_overrides(each, _changes(changes or [], None)) if changes else each
        as_listed = wanted is each and workers == 1
        cost = known_costs()[each.name] if as_listed else cost_of(wanted, workers)
        rows.append({"name": each.name, "summary": each.summary} | as_params(wanted) | asdict(cost))
    if recipe and not as_json:
        show([{"value": key, "is": value} for key, value in rows[0].items()], ["value", "is"], as_json=False, empty="")
        return
    columns = ["name", "summary", "global_batch", *(field.name for field in fields(Cost))]
    show(rows, columns, as_json=as_json, empty="")


def train(
    recipe: Annotated[str, typer.Argument(help="A recipe, as `histolake recipes` lists them.")],
    lake_uri: LakeOption = None,
    version: VersionOption = None,
    split: Annotated[Path | None, typer.Option(help="JSON file of a split.", exists=True, dir_okay=False)] = None,
    train_slides: Annotated[str | None, typer.Option(help="Slides that train, comma-separated.")] = None,
    validation_slides: Annotated[str, typer.Option(help="Slides that validate, comma-separated.")] = "",
    test_slides: Annotated[str, typer.Option(help="Slides kept for the test, comma-separated.")] = "",
    cuts_units: Annotated[bool, typer.Option(help="The lists may cut through a patient or look-alikes.")] = False,
    workers: Annotated[int, typer.Option(help="Training workers: processes on CPUs, or one a GPU.")] = 2,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps; the recipe's if not given.")] = None,
    changes: ChangesOption = None,
    where: WhereOption = None,
    include_low_resolution: Annotated[bool, typer.Option(help="Train on slides flagged low_resolution too.")] = False,
    name: Annotated[str | None, typer.Option(help="Registered model; the setting tracking.model if not given.")] = None,
    alias: Annotated[list[str] | None, typer.Option(help="Alias of the new version, beside the recipe's name.")] = None,
    run_name: Annotated[str | None, typer.Option(help="Name of the run; the same name and storage resume it.")] = None,
    storage: Annotated[str | None, typer.Option(help="Folder or URI that keeps checkpoints.")] = None,
    address: Annotated[str | None, typer.Option(help="Address of a Ray cluster; else Ray is started here.")] = None,
    tracking: TrackingOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Train a recipe on one version of a lake and register the model.

    The slides of each side are named in lists or by a split's JSON file, as `histolake lake split` writes it: by
    patients, organs, blocks of tissue. Without either, 80% of the patients train, 10% validate and 10% test, by a fixed
    draw. --where leaves out the slides of every side for which it is not true, such as `licence_id in ('CC-BY-4.0',
    'CC0-1.0')`, and is kept with the run. The run, its figures and its lineage are tracked in MLflow.

    Example: `histolake train clip-lite0 --lake /data/lake --train-slides study/C2,study/C3 --validation-slides study/C5
    --cuts-units --set steps=40`
    """
    from histolake.platform.commands import open_version
    from histolake.platform.settings import load_settings
    from histolake.training.recipes import find_recipe, with_overrides
    from histolake.training.run import train as run_training

    wanted = with_overrides(find_recipe(recipe), _changes(changes or [], steps))
    sides = _split(split, train_slides, validation_slides, test_slides, cuts_units=cuts_units)
    settings = load_settings({"cluster.address": address, "tracking.uri": tracking})
    snapshot = open_version(lake_uri, version)
    trained = run_training(
        wanted,
        snapshot,
        sides,
        tracking=settings.section("tracking"),
        cluster=settings.section("cluster"),
        workers=workers,
        name=name,
        aliases=tuple(alias or ()),
        include_low_resolution=include_low_resolution,
        where=where,
        run_name=run_name,
        storage=storage,
        say=lambda line: typer.echo(line, err=True),
    )
    row = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in asdict(trained).items()}
    columns = ["model_uri", "recipe", "lake_version", "train_steps", "loss_first", "loss_last", "seconds"]
    show([_rounded(row) if not as_json else row], columns, as_json=as_json, empty="")


@models.callback(invoke_without_command=True)
def list_all(ctx: typer.Context, tracking: TrackingOption = None, as_json: JsonFlag = False) -> None:
    """List registered models: each version, its aliases, recipe, lake version and validation figures.

    validation_mark says what the figures must not be mistaken for: "same patient" where the validation side shares a
    patient with training. forgotten says how many slides that a version saw were forgotten since, and when.

    Example: `histolake models --json`
    """
    if ctx.invoked_subcommand is not None:
        return
    from histolake.training.registry import list_models

    rows = list_models(_tracking(tracking))
    columns = ["name", "version", "aliases", "recipe", "lake_version", "validation_recall_at_10pct", "validation_mark"]
    columns += ["forgotten"]
    shown = rows if as_json else [_rounded(dict.fromkeys(columns) | row) for row in rows]
    show(shown, columns, as_json=as_json, empty="No models are registered; `histolake train` makes one.")


@models.command("lineage")
def show_lineage(
    model: Annotated[str, typer.Argument(help="NAME@ALIAS or NAME/VERSION, with or without models:/ before it.")],
    tracking: TrackingOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Trace a model to its run, the lake version and the slides of each side, with the accessions and files that they
    came from and what became of them.

    Example: `histolake models lineage omiclip@champion`
    """
    from histolake.platform.lake.forgetting.whereabouts import became
    from histolake.training.registry import lineage

    rows = lineage(model, _tracking(tracking))
    since = became(rows[0]["lake_uri"], rows[0]["lake_version"]) if rows else str
    rows = [{"accession": None, **row, "now": since(row["ingest_id"])} for row in rows]  # older runs tell no accession
    columns = ["model", "run_id", "lake_uri", "lake_version", "slide_id", "side", "study", "patient", "accession"]
    columns += ["source", "now"]
    show(rows, columns, as_json=as_json, empty="The model's run names no slides.")
    forgotten = sum(row["now"] == "forgotten" for row in rows)
    if forgotten:
        typer.echo(f"{forgotten} of {len(rows)} slides that {rows[0]['model']} saw were forgotten since.", err=True)
    elif rows and rows[0]["now"] is None:
        typer.echo(f"{rows[0]['lake_uri']} cannot be opened here, so what became of them is not known.", err=True)


@models.command("promote")
def promote_version(
    model: Annotated[str, typer.Argument(help="NAME/VERSION.")],
    alias: Annotated[str, typer.Option(help="The alias that shall point at it.")] = "champion",
    tracking: TrackingOption = None,
) -> None:
    """Let an alias point at a version: `champion` is what is served by default.

    Example: `histolake models promote omiclip/2`
    """
    from histolake.platform.errors import UsageError
    from histolake.training.registry import promote

    name, slash, version = model.removeprefix("models:/").rpartition("/")
    if not slash or not version.isdigit():
        raise UsageError(f"{model!r} names no version; write NAME/VERSION, such as omiclip/2.")
    promote(_tracking(tracking), name, version, alias)
    typer.echo(f"{name}@{alias} is now version {version}", err=True)


def _tracking(uri: str | None) -> TrackingSettings:
    from histolake.platform.settings import load_settings

    section: TrackingSettings = load_settings({"tracking.uri": uri}).section("tracking")
    return section


def _changes(pairs: list[str], steps: int | None) -> dict[str, str]:
    from histolake.platform.errors import UsageError

    changes = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise UsageError(f"--set is {pair!r}; write key=value, such as --set lr=0.0005.")
        changes[key.strip()] = value.strip()
    return changes if steps is None else changes | {"steps": str(steps)}


def _split(file: Path | None, train: str | None, validation: str, test: str, *, cuts_units: bool) -> Split:
    from histolake.platform.errors import UsageError
    from histolake.platform.splits import Split
    from histolake.platform.splits.commands import read_split

    if file is not None:
        if train is not None:
            raise UsageError("Give either --split or --train-slides, not both.")
        return read_split(file)
    if train is None:
        if validation or test:
            raise UsageError("--validation-slides and --test-slides need --train-slides beside them.")
        return Split.by_unit({"train": 0.8, "validation": 0.1, "test": 0.1})
    lists = [[part.strip() for part in text.split(",") if part.strip()] for text in (train, validation, test)]
    return Split.named(train=lists[0], validation=lists[1], test=lists[2], cuts_units=cuts_units)


def _rounded(row: dict[str, Any]) -> dict[str, Any]:
    return {key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()}
