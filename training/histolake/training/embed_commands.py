"""The command `histolake embed`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any

import typer

from histolake.platform.commands import JsonFlag, LakeOption, VersionOption, WhereOption, show

if TYPE_CHECKING:
    from histolake.platform.lake import Lake
    from histolake.training.embedding import EmbedOutcome

__all__ = ["embed"]

DEVICES = ("auto", "cpu", "cuda")


def embed(
    model: Annotated[
        str | None,
        typer.Argument(help="NAME@ALIAS, NAME/VERSION or a model folder; the champion if not given.", metavar="MODEL"),
    ] = None,
    lake_uri: LakeOption = None,
    version: VersionOption = None,
    where: WhereOption = None,
    workers: Annotated[
        int | None,
        typer.Option(min=0, help="Workers; one a GPU, else at most one a CPU slot. 0: this process, no Ray."),
    ] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Pairs a forward pass; 256 on a GPU, 32 on a CPU.")] = None,
    device: Annotated[str, typer.Option(help="auto (a GPU where there is one), cpu or cuda.")] = "auto",
    index: Annotated[bool, typer.Option("--index/--no-index", help="Make or extend the index for searching.")] = True,
    listed: Annotated[bool, typer.Option("--list", help="List the tables of embeddings that the lake has.")] = False,
    dropped: Annotated[
        str | None,
        typer.Option("--drop", help="Remove the table of NAME/VERSION, or as --list names it.", metavar="MODEL"),
    ] = None,
    address: Annotated[str | None, typer.Option(help="Address of a Ray cluster; else Ray is started here.")] = None,
    tracking: Annotated[
        str | None, typer.Option("--tracking", help="MLflow tracking URI; the setting tracking.uri if not given.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Embed every pair of a lake version with a registered model, and index the vectors for searching.

    The vectors of pictures and of sentences go to LAKE/embeddings/NAME-vVERSION.lance. Slides that are there already
    are skipped, so the same command takes up a run that was cut short, and adds what was ingested since. Ends with 1
    if a slide could not be embedded.

    Example: `histolake embed omiclip@champion --lake /data/lake --where "organ = 'breast'"`, then
    `histolake embed --list --lake /data/lake`
    """
    from histolake.platform.commands import open_lake
    from histolake.platform.errors import UsageError

    if device not in DEVICES:
        raise UsageError(f"--device is {device!r}; write {', '.join(DEVICES)}.")
    if listed and dropped is not None:
        raise UsageError("Give either --list or --drop, not both.")
    lake = open_lake(lake_uri)
    if listed:
        columns = ["table", "model", "version", "rows", "slides", "of_slides", "index", "bytes"]
        show(
            _tables(lake), columns, as_json=as_json, empty=f"No embeddings in {lake.uri}; `histolake embed` makes them."
        )
        return
    if dropped is not None:
        name = re.sub(r"^(?:models:/)?([^/@]+)/(\d+)$", r"\1-v\2", dropped)
        freed = lake.embeddings.remove(name)
        show([{"table": name, "bytes": freed}], ["table", "bytes"], as_json=as_json, empty="")
        return
    outcome = _embed(lake, model, version, where, workers, batch, device, address, tracking, index=index)
    columns = ["table", "slides", "embedded", "skipped", "elsewhere", "failed", "pairs", "index", "seconds"]
    show([outcome.flat()], columns, as_json=as_json, empty="")
    if outcome.problems:
        raise typer.Exit(1)


def _embed(
    lake: Lake,
    model: str | None,
    version: str | None,
    where: str | None,
    workers: int | None,
    batch: int | None,
    device: str,
    address: str | None,
    tracking: str | None,
    *,
    index: bool,
) -> EmbedOutcome:
    from rich.console import Console

    from histolake.ingestion.console import Bars
    from histolake.platform.cluster import start_ray
    from histolake.platform.settings import load_settings
    from histolake.training.embed_pool import process_crew, ray_crew
    from histolake.training.embedding import embed_lake, model_uri
    from histolake.training.registry import CHAMPION, resolve_model

    settings = load_settings({"cluster.address": address, "tracking.uri": tracking})
    registry = settings.section("tracking")
    snapshot = lake.at(version)
    found = resolve_model(model_uri(model or f"{registry.model}@{CHAMPION}"), registry)
    console = Console(stderr=True)
    if snapshot.notice:
        console.print(snapshot.notice, highlight=False, soft_wrap=True)
    asked: dict[str, Any] = {"where": where, "batch": batch, "index": index}
    if workers == 0:
        with Bars(console) as tell:
            outcome = embed_lake(snapshot, found, process_crew(device), ray=False, tell=tell, **asked)
    else:
        with start_ray(settings.section("cluster")), Bars(console) as tell:
            outcome = embed_lake(snapshot, found, ray_crew(device, workers), tell=tell, **asked)
    for line in _said(outcome):
        console.print(line, highlight=False, soft_wrap=True, markup=False)
    return outcome


def _said(outcome: EmbedOutcome) -> list[str]:
    """What happened, in words."""
    lines = list(outcome.problems)
    counts = {
        "there already": outcome.skipped,
        "under way in another run": outcome.elsewhere,
        "forgotten meanwhile": outcome.forgotten,
        "failed": outcome.failed,
    }
    rest = "".join(f"; {count} {what}" for what, count in counts.items() if count)
    lines.append(
        f"{outcome.embedded} of {outcome.slides} slides of lake version {outcome.lake_version} embedded into "
        f"{outcome.table} ({outcome.pairs} pairs, {outcome.without_image} without a picture, "
        f"{outcome.without_sentence} without a sentence){rest}; index: {outcome.index}"
    )
    if outcome.other_width:
        lines.append(
            f"{outcome.other_width} slides have pictures of another width on the tissue than the model was trained on; "
            "their vectors are less sure."
        )
    return lines


def _tables(lake: Lake) -> list[dict[str, Any]]:
    """What tables of embeddings there are, against the newest version of the lake."""
    live = {row["ingest_id"]: row["n_pairs"] for row in lake.at().slides().to_pylist()}
    rows = []
    for name in lake.embeddings.names():
        table = lake.embeddings.open(name)
        about, held, states = table.about, table.ingests(), table.index_state()
        rows.append(
            {
                "table": name,
                "model": about.model,
                "version": about.version,
                "digest": about.digest,
                "width": about.width,
                "image_column": about.image_column,
                "image_um": about.image_um,
                "rows": sum(held.values()),
                "slides": sum(held.get(ingest_id) == n_pairs for ingest_id, n_pairs in live.items()),
                "of_slides": len(live),
                "index": ", ".join(f"{state.name} {state.kind}" for state in states) or None,
                "indexed_rows": min((state.indexed_rows for state in states), default=0),
                "bytes": lake.embeddings.size_bytes(name),
            }
        )
    return rows
