"""Commands of the platform: `histolake settings`, `histolake export` and the group `histolake lake`.

Other modules and parts add commands to the group by entry points such as `lake.diff` (see `cli`).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from histolake.platform.cli import PartsGroup

if TYPE_CHECKING:
    from histolake.platform.lake import Lake, Snapshot

__all__ = ["export", "lake", "settings"]

JsonFlag = Annotated[bool, typer.Option("--json", help="One JSON array on stdout, nothing else there.")]
LakeOption = Annotated[
    str | None, typer.Option("--lake", help="URI of the lake: /path, file:// or s3://.", envvar="HISTOLAKE_LAKE")
]
WhereOption = Annotated[
    str | None,
    typer.Option("--where", help="Only rows for which this is true: organ = 'breast' and um_per_px < 1", metavar="SQL"),
]
VersionOption = Annotated[
    str | None,
    typer.Option("--version", metavar="VERSION", help="Lake version: a number or a tag; the newest if not given."),
]

lake = typer.Typer(
    name="lake",
    cls=PartsGroup,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    no_args_is_help=True,
    help="Look into a lake, audit it, and remove what has to go.",
)


def open_lake(uri: str | None, *, create: bool = False) -> Lake:
    """The lake that `--lake`, HISTOLAKE_LAKE or the settings file names; raises `UsageError` where none does."""
    from histolake.platform.errors import UsageError
    from histolake.platform.lake import Lake
    from histolake.platform.settings import load_settings

    named = load_settings({"lake": uri}).lake
    if not named:
        raise UsageError("No lake is named; give --lake URI or set HISTOLAKE_LAKE.")
    return Lake.open(named, create=create)


def open_version(uri: str | None, version: str | None) -> Snapshot:
    """The lake at a version that was asked for; says so where slides of it were forgotten."""
    snapshot = open_lake(uri).at(version)
    if snapshot.notice:
        typer.echo(snapshot.notice, err=True)
    return snapshot


def show(rows: Sequence[dict[str, Any]], columns: Sequence[str], *, as_json: bool, empty: str) -> None:
    """Print rows as one JSON array, or as a table of some columns."""
    if as_json:
        typer.echo(json.dumps(list(rows), indent=1, default=str))
        return
    from rich.console import Console
    from rich.table import Table

    if not rows:
        Console(stderr=True).print(empty)
        return
    table = Table(*columns, box=None, header_style="bold")
    for row in rows:
        table.add_row(*("" if row[name] is None else str(row[name]) for name in columns))
    # A pipe has no width: rows stay on one line each there.
    Console(width=None if sys.stdout.isatty() else 250).print(table)


def settings(as_json: JsonFlag = False) -> None:
    """Show every setting, its value and where it came from: flag, environment, file or default.

    Set one with a variable (`HISTOLAKE_QUALITY__MIN_GENES=300`) or in histolake.toml (`[quality]`, `min_genes = 300`).
    """
    from histolake.platform.settings import load_settings

    loaded = load_settings()
    rows = [asdict(row) for row in loaded.describe()]
    show(rows, ["name", "value", "source", "env"], as_json=as_json, empty="")
    typer.echo(f"file: {loaded.file or 'none (./histolake.toml would be read)'}", err=True)


@lake.command("slides")
def slides(
    lake_uri: LakeOption = None,
    version: VersionOption = None,
    where: WhereOption = None,
    every: Annotated[bool, typer.Option("--all", help="Every row of every version, refused and retired too.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """List the published slides of a lake version: what each is, where it came from, how many pairs it has.

    --where compares the columns that --json shows as in SQL: `licence_id in ('CC-BY-4.0', 'CC0-1.0')` (licence under
    one name), `array_has(flags, 'low_resolution')`, `patient is null`. A comparison with an empty value is not true.

    Example: `histolake lake slides --lake /data/lake --where "organ = 'breast' and um_per_px < 1"`
    """
    from histolake.platform.lake.where import select

    snapshot = open_version(lake_uri, version)
    opened = snapshot.lake
    table = select(opened.catalog.slides(), where) if every else snapshot.slides(where=where)
    rows = [flat(row) for row in table.drop_columns(["fragments"]).to_pylist()]
    columns = ["slide_id", "status", "n_pairs", "n_rejections", "patient", "technology", "um_per_px", "flags"]
    columns = [*columns, "published_in", "retired_in"] if every else [*columns, "published_in"]
    show(rows, columns, as_json=as_json, empty=f"No slides in {opened.uri}.")


@lake.command("rejections")
def rejections(
    lake_uri: LakeOption = None,
    version: VersionOption = None,
    where: WhereOption = None,
    as_json: JsonFlag = False,
) -> None:
    """List the slides and spots that were refused: by which rule, with which figure, against which limit.

    --where may compare the columns of a rejection and those of its slide.

    Example: `histolake lake rejections --lake /data/lake --where "rule = 'min_genes' and organ = 'breast'"`
    """
    rows = open_version(lake_uri, version).rejections(where).to_pylist()
    columns = ["slide_id", "barcode", "rule", "figure", "limit", "reason"]
    show(rows, columns, as_json=as_json, empty="Nothing was refused.")


@lake.command("check")
def check(
    lake_uri: LakeOption = None,
    deep: Annotated[
        bool, typer.Option("--deep", help="Read every image and count too, and decode the images.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Audit the lake: does it hold what its catalogue says, once, and whole? Ends with 1 where it does not.

    Looked at are the files of all tables, whose pairs they hold, pairs that are there twice or whose neighbours or
    images are missing, counts of pairs and rejections, shards of exports against their checksums, and what dead
    attempts left. A finding is an error (with what to do) or waste (`histolake lake vacuum` removes it).

    It reads some 1.5 KB a pair and the shards: seconds for a million pairs on disk. Images and counts are looked at
    in the first and last pair of each fragment. --deep looks at all of them: some 20 KB a pair, ten minutes
    for a million pairs on a core. Both may run beside an ingest.

    Example: `histolake lake check --lake /data/lake --deep`
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from histolake.platform.lake.audit import check as audit

    opened = open_lake(lake_uri)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task("catalogue", total=None)

        def tell(what: str, done: int, of: int) -> None:
            shown.update(task, description=what, completed=done, total=of)

        findings = audit(opened, deep=deep, tell=tell)
    rows = [asdict(finding) for finding in findings]
    listed = ["severity", "slide_id", "ingest_id", "finding", "fix"]
    show(rows, listed, as_json=as_json, empty="All is as the catalogue says.")
    if any(finding.severity == "error" for finding in findings):
        raise typer.Exit(1)


@lake.command("vacuum")
def vacuum(lake_uri: LakeOption = None, as_json: JsonFlag = False) -> None:
    """Remove what no version of the lake names: rows and files of ingests that died. Safe beside a running ingest.

    Example: `histolake lake vacuum --lake /data/lake`
    """
    from histolake.platform.lake.vacuum import vacuum as clean

    row = asdict(clean(open_lake(lake_uri)))
    show([row], list(row), as_json=as_json, empty="")


@lake.command("compact")
def compact(lake_uri: LakeOption = None, as_json: JsonFlag = False) -> None:
    """Move the pairs of each slide that lie in several fragments into one, so that the lake stays quick to open.

    Nothing else changes: versions, their order of pairs and plans of training stay as they are. Safe beside ingests and
    readers, and to be run again if it dies; `histolake lake vacuum` then gives the room of the old fragments back.

    Example: `histolake lake compact --lake /data/lake`
    """
    from rich.console import Console
    from rich.progress import Progress

    from histolake.platform.lake.compact import compact as move

    with Progress(console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("compacting", total=None)
        row = asdict(move(open_lake(lake_uri), lambda done, total: progress.update(bar, completed=done, total=total)))
    show([row], list(row), as_json=as_json, empty="")


def export(
    name: Annotated[str, typer.Argument(help="The export's name; its shards are NAME-000000.tar and so on.")],
    lake_uri: LakeOption = None,
    to: Annotated[
        str | None, typer.Option("--to", help="Folder or s3:// prefix for it; default LAKE/exports/NAME.")
    ] = None,
    version: VersionOption = None,
    image: Annotated[str, typer.Option("--image", help="spot or niche: which patch and sentence.")] = "spot",
    slide: Annotated[
        list[str] | None, typer.Option("--slide", help="Only this slide; may be repeated. Default: all.")
    ] = None,
    where: WhereOption = None,
    rows_per_shard: Annotated[int, typer.Option("--rows-per-shard", min=1, help="Pairs in a shard.")] = 1000,
    as_json: JsonFlag = False,
) -> None:
    """Write WebDataset shards of a lake version: a .jpg, a .txt and a .json a pair, and a manifest.

    open_clip and other loaders read them as they are. The same export made again is kept.

    Example: `histolake export pretrain --lake /data/lake --to /data/shards/pretrain --where "organ = 'breast'"`
    """
    from histolake.platform.export import ExportSpec
    from histolake.platform.export import export as write
    from histolake.platform.storage import Location

    snapshot = open_version(lake_uri, version)
    place = Location.parse(to) if to else snapshot.lake.root.join("exports", name)
    chosen = tuple(slide) if slide else None
    if where is not None:
        found = snapshot.slides(where=where)["slide_id"].to_pylist()
        chosen = tuple(slide_id for slide_id in found if chosen is None or slide_id in chosen)
    spec = ExportSpec(name=name, image=image, slide_ids=chosen, rows_per_shard=rows_per_shard)
    manifest = write(snapshot, spec, place)
    rows = [{**shard, "uri": place.join(shard["name"]).uri} for shard in manifest.shards]
    show(rows, ["name", "rows", "bytes", "sha256"], as_json=as_json, empty="There was no pair to export.")
    done = "was there already" if manifest.reused else "written"
    typer.echo(
        f"{manifest.pairs} pairs of lake version {manifest.lake_version} in {len(manifest.shards)} shards at {place}: "
        f"{done}; {manifest.left_out} pairs without a picture or a sentence left out.",
        err=True,
    )


def flat(row: dict[str, Any]) -> dict[str, Any]:
    """A row without nested values: lists become text, members that have names as `name=value`."""

    def text(value: Any) -> str:
        return " ".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else str(value)

    return {key: ", ".join(map(text, value)) if isinstance(value, list) else value for key, value in row.items()}
