"""Commands with which curators change what is in a lake: `histolake lake correct` and `histolake lake retile`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from histolake.ingestion.commands import ChangeOption, MetadataOption
from histolake.ingestion.console import Bars, end_with, read_changes, show_mismatches, stderr
from histolake.platform.commands import JsonFlag, LakeOption, WhereOption, open_lake, show
from histolake.platform.errors import SlideNotFoundError, UsageError

if TYPE_CHECKING:
    from histolake.ingestion.metadata import Mismatch
    from histolake.platform.lake import Snapshot

__all__ = ["correct", "retile"]

SlideOption = Annotated[
    list[str] | None, typer.Option("--slide", help="A slide_id, such as her2st/C2; may be repeated.")
]


def correct(
    slide: SlideOption = None,
    where: WhereOption = None,
    change: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="COLUMN=VALUE", help="The right value; COLUMN= empties it. May be repeated."),
    ] = None,
    metadata: MetadataOption = None,
    lake_uri: LakeOption = None,
    plan: Annotated[bool, typer.Option("--plan", help="Show what would change, write nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Set wrong metadata right (patient, study, organ, disease, licence, accession, technology); pairs are not touched.

    Name the slides with --slide or --where and the values with --set, or give the tables that `histolake ingest
    --metadata` takes. What changes is shown first. The correction is a version of its own: versions before read as
    before, and correcting back undoes it. An ingest of the same source keeps it, until the source says something new.

    Example: `histolake lake correct --slide her2st/C2 --set patient=C --lake /data/lake`

    Example: `histolake lake correct --metadata patients.csv --where "cohort = 'her2st'" --lake /data/lake`
    """
    from histolake.platform.lake.correct import corrections

    if bool(change) == bool(metadata):
        raise UsageError("Say what is right: either with --set COLUMN=VALUE or with --metadata CSV.")
    if not metadata and not slide and where is None:
        raise UsageError("Name the slides to correct with --slide or --where (--where true takes all).")
    lake = open_lake(lake_uri)
    snapshot = lake.at()
    chosen = _chosen(snapshot, slide, where)
    mismatches: list[Mismatch] = []
    if metadata:
        values, mismatches = _from_tables(chosen, metadata)
    else:
        values = dict.fromkeys([row["slide_id"] for row in chosen], _values(change or []))
    changes = corrections(snapshot, values)
    show_mismatches(stderr(), mismatches, None)
    rows = [asdict(change) for change in changes]
    show(rows, ["slide_id", "column", "old", "new"], as_json=as_json, empty="Everything is so already.")
    if plan or not changes:
        return
    slides = len({change.slide_id for change in changes})
    typer.echo(f"{len(changes)} values of {slides} slides in {lake.uri}.", err=True)
    if not yes:
        typer.confirm("Correct?", abort=True, err=True)
    typer.echo(f"The lake is at version {lake.correct(changes)}.", err=True)


def _chosen(snapshot: Snapshot, slides: Sequence[str] | None, where: str | None) -> list[dict[str, Any]]:
    """The rows of the slides that are meant, one a slide."""
    rows = {row["slide_id"]: row for row in reversed(snapshot.slides(include_refused=True, where=where).to_pylist())}
    if slides:
        gone = sorted(set(slides) - set(rows))
        if gone:
            among = f" with {where}" if where else ""
            raise SlideNotFoundError(f"Version {snapshot.version} has no slide {', '.join(gone)}{among}.")
        rows = {slide_id: row for slide_id, row in rows.items() if slide_id in slides}
    return [rows[slide_id] for slide_id in sorted(rows)]


def _values(words: Sequence[str]) -> dict[str, str | None]:
    values: dict[str, str | None] = {}
    for word in words:
        column, equals, value = word.partition("=")
        if not equals:
            raise UsageError(f"--set is {word!r}; write COLUMN=VALUE, such as --set patient=P7.")
        values[column.strip()] = value.strip() or None
    return values


def _from_tables(
    rows: Sequence[dict[str, Any]], tables: Sequence[str]
) -> tuple[dict[str, dict[str, str | None]], list[Mismatch]]:
    """What metadata tables say of slides in the lake, and what of it does not match or cannot be corrected there."""
    from histolake.ingestion.metadata import MetadataTable, Mismatch
    from histolake.platform.schemas import CORRECTABLE

    table = MetadataTable.read(tables)
    sections = Counter(row["section"] for row in rows)
    twice = sorted(section for section, n in sections.items() if n > 1)
    if twice:
        raise UsageError(
            f"Several cohorts have a section {', '.join(map(repr, twice[:10]))}; "
            "choose one with --where \"cohort = 'NAME'\"."
        )
    values: dict[str, dict[str, str | None]] = {}
    others: list[Mismatch] = []
    for row in rows:
        said = table.look_up(row["section"], row)
        values[row["slide_id"]] = {name: value for name, value in said.items() if name in CORRECTABLE}
        for name in sorted(set(said) - set(CORRECTABLE)):
            if name in row and not _agrees(row[name], said[name]):
                message = (
                    f"{name} of {row['slide_id']} is {row[name]} in the lake and {said[name]!r} here; it is not "
                    "corrected in the catalogue, ingest the section again with this table"
                )
                others.append(
                    Mismatch(
                        kind="not_correctable", table=tables[0], line=None, section=row["section"], message=message
                    )
                )
    return {slide_id: said for slide_id, said in values.items() if said}, [*table.mismatches(), *others]


def _agrees(recorded: Any, said: str) -> bool:
    if isinstance(recorded, bool):
        return said.lower() in (("true", "1", "yes") if recorded else ("false", "0", "no"))
    return recorded == float(said) if isinstance(recorded, float) else str(recorded) == said


def retile(
    slide: SlideOption = None,
    where: WhereOption = None,
    change: ChangeOption = None,
    lake_uri: LakeOption = None,
    plan: Annotated[bool, typer.Option("--plan", help="Read and judge, write nothing.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Ingest slides again from where they came from, under other settings: other patches, other rules.

    Each slide is read by the same reader from its recorded source, with the metadata tables' words as they were
    recorded; corrections stay. A source that is gone or not what it was is listed and its slide left as it is, and the
    exit code is then 3. Versions before keep the old pairs.

    Example: `histolake lake retile --where "technology = 'Visium'" --set patches.spot_um=112 --lake /data/lake`
    """
    from histolake.ingestion import pipeline
    from histolake.ingestion.recorded import as_recorded
    from histolake.platform.cluster import start_ray
    from histolake.platform.settings import load_settings

    settings = load_settings({"lake": lake_uri, **read_changes(change or [])})
    if not slide and where is None:
        raise UsageError("Name the slides to cut again with --slide or --where (--where true takes all).")
    opened = open_lake(settings.lake)
    rows = [row for row in _chosen(opened.at(), slide, where) if row["status"] == "published"]
    console = stderr()
    rules = pipeline.ingest_settings(settings)
    console.print(f"{len(rows)} slides; starting Ray", highlight=False)
    with start_ray(settings.section("cluster")), Bars(console) as tell:
        work = pipeline.plan if plan else pipeline.ingest
        outcomes = work((as_recorded(row, settings) for row in rows), opened, rules, tell)
        workers = pipeline.workers_for(outcomes)
    end_with(console, outcomes, workers=workers, as_json=as_json)
