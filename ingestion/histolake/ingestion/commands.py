"""Commands of the ingestion: `histolake sample` and `histolake ingest`."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from histolake.platform.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from histolake.ingestion.outcome import Outcome
    from histolake.ingestion.workforce import Progress

__all__ = ["ingest", "sample"]

REFUSED = 3  # exit code where something was refused

JsonFlag = Annotated[bool, typer.Option("--json", help="One JSON array on stdout, nothing else there.")]


def sample(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="A public cohort to fetch; --list shows what there is.")
    ] = None,
    from_dir: Annotated[
        str | None,
        typer.Option("--from", help="A folder of real sections; without it HISTOLAKE_SAMPLE_DIR, else simulated ones."),
    ] = None,
    to: Annotated[
        str, typer.Option("--to", help="Where to write the cohort file (and fetched or simulated sections).")
    ] = "histolake-sample",
    seed: Annotated[int, typer.Option("--seed", help="Seed of the simulated cohort.")] = 0,
    list_public: Annotated[
        bool, typer.Option("--list", help="List the public cohorts that can be fetched, and end.")
    ] = False,
    blocks: Annotated[
        int, typer.Option("--blocks", min=1, max=9, help="Cut each fetched section into as many, with gaps between.")
    ] = 1,
    public: Annotated[
        bool,
        typer.Option("--public", help="Without a folder: the smallest public cohort, if the network has it."),
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Choose a cohort to try histolake on: sections that you name, a public cohort, or simulated ones.

    Writes cohort.json and metadata.csv, which `histolake ingest` takes; your own files are neither copied nor changed.
    A public cohort (10x Genomics' Visium sections, CC BY 4.0) is fetched, verified and, where it broke off, taken up
    again; NAME is a section or a cohort of several. A mirror of the same files is named in public.base_url.

    Example: histolake sample --to my-sample && histolake ingest my-sample/cohort.json --lake my-lake --cohort demo

    Example: histolake sample --list

    Example: histolake sample breast-cancer-block-a --to breast && histolake ingest breast/cohort.json --lake my-lake
    --cohort breast
    """
    from histolake.ingestion.public.catalogue import load_catalogue
    from histolake.ingestion.public.showing import FileBars, list_cohorts
    from histolake.ingestion.sample import Public, choose
    from histolake.platform.settings import load_settings

    console = _console()
    settings = load_settings()
    if list_public:
        list_cohorts(console, load_catalogue(settings.section("public").catalogue), as_json=as_json)
        return
    if name and from_dir:
        raise UsageError(f"Both the public cohort {name!r} and --from {from_dir} are named; name one.")
    with FileBars(console) as bars, _progress(console) as tell:
        asked = Public(settings=settings.section("public"), name=name, blocks=blocks, tell=bars.tell, say=bars.say)
        chosen = choose(
            from_dir or settings.sample_dir, to, seed=seed, tell=tell, public=asked if name or public else None
        )
    console.print(f"[bold]{chosen.name}[/] ({chosen.data}): {chosen.why}", highlight=False)
    for line in chosen.left_aside:
        console.print(f"left aside: {line}", highlight=False)
    console.print(f"{len(chosen.sections)} sections in {chosen.file}", highlight=False)
    if as_json:
        typer.echo(json.dumps(chosen.rows(), indent=1))


def ingest(
    sources: Annotated[
        list[str], typer.Argument(metavar="SOURCE...", help="Folders of sections, or a cohort.json; on disk or s3://.")
    ],
    lake: Annotated[str | None, typer.Option("--lake", help="The lake's URI; made if it is not there.")] = None,
    cohort: Annotated[
        str | None, typer.Option("--cohort", help="Name of the cohort that the sections belong to.")
    ] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Read and judge, write nothing.")] = False,
    metadata: Annotated[
        str | None,
        typer.Option("--metadata", help="CSV: section, patient, study, organ, ...; wins over what the files say."),
    ] = None,
    change: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Another value for a setting.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Read sections, check them, cut their patches, and publish them in a lake.

    The reader is chosen by looking at the files. A section is published whole or not at all; what is refused is
    recorded with its reason, and the exit code is then 3. Run it again: what is published stays unchanged.

    Example: histolake ingest sections/ --lake /data/lake --cohort breast --set quality.min_genes=300
    """
    from histolake.ingestion import pipeline
    from histolake.ingestion.discover import find_sections
    from histolake.platform.cluster import start_ray
    from histolake.platform.lake import Lake
    from histolake.platform.settings import load_settings

    settings = load_settings({"lake": lake, **_changes(change or [])})
    if settings.lake is None:
        raise UsageError("No lake is named; give --lake URI or set HISTOLAKE_LAKE.")
    if cohort is None:
        raise UsageError("No cohort is named; give --cohort NAME.")
    console = _console()
    candidates = find_sections(sources, cohort, metadata)
    rules = pipeline.ingest_settings(settings)
    console.print("starting Ray", highlight=False)
    with start_ray(settings.section("cluster")), _progress(console) as tell:
        if plan:
            outcomes = pipeline.plan(candidates, _existing(settings.lake), rules, tell)
        else:
            outcomes = pipeline.ingest(candidates, Lake.open(settings.lake, create=True), rules, tell)
    if as_json:
        typer.echo(json.dumps([outcome.flat() for outcome in outcomes], indent=1))
    _table(console, outcomes)
    console.print(_last_line(outcomes), highlight=False, soft_wrap=True)
    if any(outcome.status == "refused" for outcome in outcomes):
        raise typer.Exit(REFUSED)


def _changes(words: list[str]) -> dict[str, object]:
    changes: dict[str, object] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or "." not in key:
            raise UsageError(f"--set {word!r} is not SECTION.KEY=VALUE; `histolake settings` lists the keys.")
        changes[key.strip()] = value.strip()
    return changes


def _existing(uri: str) -> Any:
    from histolake.platform.errors import LakeNotFoundError
    from histolake.platform.lake import Lake

    try:
        return Lake.open(uri)
    except LakeNotFoundError:
        return None


def _console() -> Console:
    from rich.console import Console

    return Console(stderr=True)


def _progress(console: Console) -> _Bars:
    return _Bars(console)


class _Bars:
    """Progress bars on stderr: one a step, made when the step first tells of itself."""

    def __init__(self, console: Console) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self._bars = Progress(
            TextColumn("{task.description:>16}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
        )
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> Progress:
        self._bars.start()
        return self._tell

    def __exit__(self, *_: object) -> None:
        self._bars.stop()
        sys.stderr.flush()

    def _tell(self, what: str, done: int, of: int) -> None:
        if what not in self._tasks:
            self._tasks[what] = self._bars.add_task(what, total=of)
        self._bars.update(self._tasks[what], completed=done, total=of)


def _table(console: Console, outcomes: list[Outcome]) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table("section", "read", "kept", "refused", "why", "status", box=None, pad_edge=False)
    for o in outcomes:
        why = o.rule or ", ".join(f"{rule}: {n}" for rule, n in o.refused_by_rule.items())
        flags = f" ({', '.join(o.flags)})" if o.flags else ""
        numbers = ("", "", "") if o.status == "refused" else (o.spots_read, o.spots_kept, o.spots_refused)
        table.add_row(o.section, *map(str, numbers), why, o.status + flags)
    console.print(table)
    for o in outcomes:
        if o.reason:
            console.print(f"[bold]{o.section}[/] {o.rule}: {escape(o.reason)}", highlight=False, soft_wrap=True)


def _last_line(outcomes: list[Outcome]) -> str:
    """What happened, in one line that names what was refused."""
    count = {s: sum(o.status == s for o in outcomes) for s in ("published", "unchanged", "refused", "planned")}
    said = ", ".join(f"{n} {status}" for status, n in count.items() if n)
    spots = sum(o.spots_kept for o in outcomes)
    versions = [o.lake_version for o in outcomes if o.lake_version is not None]
    at = f"; the lake is at version {max(versions)}" if versions else ""
    refused = [f"{o.slide_id} ({o.rule})" for o in outcomes if o.status == "refused"]
    why = f"; refused: {', '.join(refused)}" if refused else ""
    return f"{said}; {spots} pairs{at}{why}"
