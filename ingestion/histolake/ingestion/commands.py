"""Commands of the ingestion: `histolake sample` and `histolake ingest`."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from histolake.ingestion.console import Bars, end_with, read_changes, show_mismatches, stderr
from histolake.platform.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from histolake.platform.lake import Lake

__all__ = ["ChangeOption", "MetadataOption", "ingest", "sample"]

ChangeOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Another value for a setting.")
]
MetadataOption = Annotated[
    list[str] | None,
    typer.Option("--metadata", metavar="CSV", help="What is known of sections, patients or studies; may be repeated."),
]
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

    console = stderr()
    settings = load_settings()
    if list_public:
        list_cohorts(console, load_catalogue(settings.section("public").catalogue), as_json=as_json)
        return
    if name and from_dir:
        raise UsageError(f"Both the public cohort {name!r} and --from {from_dir} are named; name one.")
    if blocks > 1 and not name:
        raise UsageError("--blocks cuts the sections of a public cohort that is named; name one.")
    with FileBars(console) as bars, Bars(console) as tell:
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
    metadata: MetadataOption = None,
    mismatches: Annotated[
        str | None, typer.Option("--mismatches", metavar="CSV", help="Where to write what the tables do not match.")
    ] = None,
    rehash: Annotated[
        bool,
        typer.Option("--rehash", help="Read every file for its digest, also those unchanged since they were read."),
    ] = False,
    change: ChangeOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Read sections, check them, cut their patches, and publish them in a lake.

    The reader is chosen by looking at the files: Space Ranger 1 to 4, Visium HD, Xenium, SpatialData, HEST-1k,
    STimage-1K4M, legacy Spatial Transcriptomics, AnnData (h5ad), and plug-ins; docs/readers.md says what each needs. A
    section is published whole or not at all; what is refused is
    recorded with its reason, and the exit code is then 3. Run it again: what is published stays unchanged, and files
    that this machine has read before are told by their times (on S3 by their ETags) and not read again; --rehash reads
    them.

    A metadata table has a row a section (column `section`), a patient (`patient`, `study`) or a study (`study`);
    several are joined. What does not match is listed at the end. --plan reads and judges, and tells pairs, bytes and
    time, which it measures on a few spots a section.

    Example: histolake ingest sections/ --lake /data/lake --cohort breast --set quality.min_genes=300
    """
    from histolake.ingestion import pipeline
    from histolake.ingestion.discover import find_sections
    from histolake.ingestion.metadata import MetadataTable
    from histolake.platform.cluster import start_ray
    from histolake.platform.lake import Lake
    from histolake.platform.settings import load_settings

    settings = load_settings({"lake": lake, **read_changes(change or [])})
    if settings.lake is None:
        raise UsageError("No lake is named; give --lake URI or set HISTOLAKE_LAKE.")
    if cohort is None:
        raise UsageError("No cohort is named; give --cohort NAME.")
    console = stderr()
    table = MetadataTable.read(metadata or [])
    candidates = find_sections(sources, cohort, table, settings)
    if rehash:
        candidates = (replace(candidate, rehash=True) for candidate in candidates)
    rules = pipeline.ingest_settings(settings)
    console.print("starting Ray", highlight=False)
    into = None if plan else Lake.open(settings.lake, create=True)
    with start_ray(settings.section("cluster")), Bars(console) as tell:
        if into is None:
            outcomes = pipeline.plan(candidates, _existing(settings.lake), rules, tell)
        else:
            outcomes = pipeline.ingest(candidates, into, rules, tell)
        workers = pipeline.workers_for(outcomes)
    show_mismatches(console, table.mismatches(), mismatches)
    if into is not None:
        _advise(console, into)
        command = f"histolake lake report --lake {settings.lake} --cohort {cohort} --to {cohort}.html"
        console.print(f"what became of it, in pictures: {command}", highlight=False, soft_wrap=True)
    end_with(console, outcomes, workers=workers, as_json=as_json)


def _advise(console: Console, lake: Lake) -> None:
    """Say when the lake would be quicker for a compaction."""
    from histolake.platform.lake.compact import scattered

    if (fragments := scattered(lake)) is not None:
        said = f"the lake's pairs lie in {fragments:,} fragments; to make commits and readers quicker: "
        console.print(f"{said}histolake lake compact --lake {lake.uri}", highlight=False, soft_wrap=True)


def _existing(uri: str) -> Any:
    from histolake.platform.errors import LakeNotFoundError
    from histolake.platform.lake import Lake

    try:
        return Lake.open(uri)
    except LakeNotFoundError:
        return None
