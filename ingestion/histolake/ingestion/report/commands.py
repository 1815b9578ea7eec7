"""`histolake lake report`: the cohort report as one HTML file."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import pyarrow as pa

    from histolake.ingestion.report.collect import Tell
    from histolake.platform.lake import Lake
    from histolake.platform.lake.snapshot import Snapshot

__all__ = ["report", "write_report"]


def report(
    lake_uri: Annotated[
        str | None, typer.Option("--lake", help="URI of the lake: /path, file:// or s3://.", envvar="HISTOLAKE_LAKE")
    ] = None,
    cohort: Annotated[
        list[str] | None, typer.Option("--cohort", help="Only this cohort; may be repeated. Default: all of the lake.")
    ] = None,
    where: Annotated[
        str | None,
        typer.Option("--where", help="Only sections for which this holds, such as \"organ = 'breast'\"."),
    ] = None,
    version: Annotated[
        str | None, typer.Option("--version", help="Lake version: a number or a tag; the newest if not given.")
    ] = None,
    to: Annotated[str, typer.Option("--to", help="Where to write the page; outside the lake.")] = "report.html",
    limit: Annotated[int, typer.Option("--limit", min=1, help="Sections shown with a picture, at most.")] = 200,
    map_pairs: Annotated[
        int, typer.Option("--map-pairs", min=0, help="Pairs drawn on the map (UMAP), at most; 0 leaves the map out.")
    ] = 4000,
    embeddings: Annotated[
        str | None,
        typer.Option("--embeddings", help="Make the map from these, such as omiclip-v2. Default: what covers most."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON array on stdout, nothing else there.")] = False,
) -> None:
    """Write what became of a cohort as one HTML page: pictures with the spots on them, refusals, quality, scale, map.

    The page needs nothing but itself: open it in any browser, send it, print it. Sections that were refused are in it
    with the reason and what to do next; so are duplicates side by side, blank patients and licences, and a map of pairs
    in which batch effects are seen.

    Example: histolake lake report --lake /data/lake --cohort breast --to breast.html
    """
    from histolake.platform.commands import open_lake

    opened = open_lake(lake_uri)
    row = write_report(
        opened,
        cohorts=cohort or [],
        where=where,
        version=version,
        to=to,
        limit=limit,
        map_pairs=map_pairs,
        embeddings=embeddings,
    )
    if as_json:
        typer.echo(json.dumps([row], indent=1))
    typer.echo(f"{row['report']}: {row['published']} sections published, {row['refused']} refused", err=True)


def write_report(
    lake: Lake,
    *,
    to: str,
    cohorts: Sequence[str] = (),
    where: str | None = None,
    version: int | str | None = None,
    limit: int = 200,
    map_pairs: int = 4000,
    embeddings: str | None = None,
) -> dict[str, Any]:
    """Collect, draw and write; returns what `--json` prints. Raises `UsageError`."""
    from histolake.ingestion.pipeline import ingest_settings
    from histolake.ingestion.report.collect import collect
    from histolake.ingestion.report.render import render
    from histolake.platform.errors import UsageError
    from histolake.platform.settings import load_settings
    from histolake.platform.storage import Location

    place = Location.parse(to)
    if place.uri == lake.uri or place.uri.startswith(lake.uri.rstrip("/") + "/"):
        raise UsageError(f"The report {place} would lie in the lake and outlive what is forgotten; write it elsewhere.")
    snapshot = lake.at(version)
    if snapshot.notice:
        typer.echo(snapshot.notice, err=True)
    slides, chosen = _choose(snapshot, cohorts, where)
    with snapshot.reading("report"), _telling() as tell:
        loaded = load_settings()
        settings = ingest_settings(loaded)
        found = collect(snapshot, slides, chosen=chosen, limit=limit, settings=settings, tell=tell)
        _add_likenesses(snapshot, found, loaded.section("duplicates").image_bits)
        _add_map(snapshot, found, map_pairs=map_pairs, embeddings=embeddings, tell=tell)
        tell("drawing", 0, 1)
        page = render(found, command=_command(lake, cohorts, where, found.version, to)).encode()
        tell("drawing", 1, 1)
    place.write_bytes(page)
    return {
        "report": place.uri,
        "bytes": len(page),
        "lake_version": found.version,
        "sections": len(found.sections),
        "published": len(found.published),
        "refused": len(found.refused),
        "shown": len(found.shown),
        "pairs": sum(section.row["n_pairs"] or 0 for section in found.published),
        "map": None if found.map is None else found.map.of,
    }


def _choose(snapshot: Snapshot, cohorts: Sequence[str], where: str | None) -> tuple[pa.Table, str]:
    """The slides that were asked for, refused ones too, and what they are called."""
    import pyarrow as pa
    import pyarrow.compute as pc

    from histolake.platform.errors import UsageError
    from histolake.platform.lake.where import select

    slides = snapshot.slides(include_refused=True)
    there = sorted({str(name) for name in slides["cohort"].to_pylist() if name is not None})
    if not slides.num_rows:
        raise UsageError(f"Version {snapshot.version} of {snapshot.lake.uri} has no sections to report on.")
    unknown = sorted(set(cohorts) - set(there))
    if unknown:
        raise UsageError(
            f"There is no cohort {', '.join(unknown)} in version {snapshot.version}; there are {', '.join(there)}."
        )
    chosen = f"the cohort {there[0]}" if len(there) == 1 else f"{len(there)} cohorts"
    if cohorts:
        slides = slides.filter(pc.is_in(slides["cohort"], pa.array(sorted(set(cohorts)))))
        chosen = f"the {'cohort' if len(set(cohorts)) == 1 else 'cohorts'} {', '.join(sorted(set(cohorts)))}"
    if where is not None:
        slides = select(slides, where)
        chosen += f", where {where}"
        if not slides.num_rows:
            raise UsageError(f"No section of {chosen}; `histolake lake slides --all` lists what there is.")
    return slides, chosen


def _add_likenesses(snapshot: Snapshot, found: Any, image_bits: int) -> None:
    from histolake.ingestion.report.collect import overview
    from histolake.ingestion.report.similar import NEAR_BITS, find_alike

    every = snapshot.slides().select(["slide_id", "ingest_id", "image_hash", "profile_sketch"])
    found.alike = find_alike(found.sections, every, max(NEAR_BITS, image_bits))
    ingest_of = dict(zip(every["slide_id"].to_pylist(), every["ingest_id"].to_pylist(), strict=True))
    pictured = {section.slide_id for section in found.sections if section.overview}
    for likeness in found.alike:
        for slide_id in {likeness.one, likeness.other} - pictured:
            picture = overview(snapshot, ingest_of[slide_id]) if slide_id in ingest_of else None
            if picture is not None:
                found.elsewhere[slide_id] = picture


def _add_map(snapshot: Snapshot, found: Any, *, map_pairs: int, embeddings: str | None, tell: Tell) -> None:
    from histolake.ingestion.report.projection import MapSettings, make_map

    slide_ids = sorted({section.slide_id for section in found.published})
    if not map_pairs or not slide_ids:
        found.why_no_map = "No section is published." if not slide_ids else "The map was left out (--map-pairs 0)."
        return
    settings = MapSettings(pairs=map_pairs)
    found.map, found.why_no_map = make_map(snapshot, slide_ids, embeddings=embeddings, settings=settings, tell=tell)


def _command(lake: Lake, cohorts: Sequence[str], where: str | None, version: int, to: str) -> str:
    from shlex import quote

    named = "".join(f" --cohort {quote(name)}" for name in cohorts)
    named += f" --where {quote(where)}" if where else ""
    return f"histolake lake report --lake {quote(lake.uri)}{named} --version {version} --to {quote(to)}"


@contextmanager
def _telling() -> Iterator[Tell]:
    """Progress bars on stderr: one a step, made when the step first tells of itself."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description:>20}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    tasks: dict[str, Any] = {}
    with Progress(*columns, console=Console(stderr=True)) as bars:

        def tell(what: str, done: int, of: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=of)
            bars.update(tasks[what], completed=done, total=of)

        yield tell
    sys.stderr.flush()
