"""`histolake lake forget`: what would go is shown and asked about, what went is in a receipt."""

from __future__ import annotations

from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from histolake.platform.commands import JsonFlag, LakeOption, open_lake, show

if TYPE_CHECKING:
    from histolake.platform.lake import Lake
    from histolake.platform.lake.forgetting import Receipt
    from histolake.platform.storage import Location

__all__ = ["forget"]

NAMED = 20  # slides that a message names


def forget(
    lake_uri: LakeOption = None,
    slide: Annotated[str | None, typer.Option("--slide", help="A slide_id, such as her2st/C2.")] = None,
    patient: Annotated[
        str | None, typer.Option("--patient", help="STUDY/PATIENT; the patient alone where one study has it.")
    ] = None,
    study: Annotated[str | None, typer.Option("--study", help="All slides of a study, such as one withdrawn.")] = None,
    receipt: Annotated[
        str | None, typer.Option("--receipt", help="Where to write the receipt; outside the lake. Default: here.")
    ] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Show what would go, and do nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    finish: Annotated[bool, typer.Option("--finish", help="Only finish forgettings whose process died.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Remove a slide, a patient or a study from every table, file and version of the lake, for good.

    The receipt names what went, the versions and tags that read without it now, and the registered models that saw it;
    models are not changed. Exports written outside the lake, and copies elsewhere, are not reached. A forgetting whose
    process died is finished by the next.

    Example: `histolake lake forget --patient study/P7 --plan --lake /data/lake`
    """
    from histolake.platform.errors import UsageError
    from histolake.platform.lake.forgetting import finish as finish_begun
    from histolake.platform.lake.forgetting import forget as remove
    from histolake.platform.lake.forgetting import plan_forget
    from histolake.platform.settings import load_settings
    from histolake.platform.tracking import mark_forgotten, models_that_saw

    opened = open_lake(lake_uri)
    if finish:
        typer.echo(f"{finish_begun(opened)} forgettings were finished.", err=True)
        return
    if sum(given is not None for given in (slide, patient, study)) != 1:
        raise UsageError("Name what to forget: one of --slide SLIDE, --patient STUDY/PATIENT and --study STUDY.")
    if not plan and (finished := finish_begun(opened)):
        typer.echo(f"{finished} forgettings whose process had died were finished first.", err=True)
    chosen = _chosen(opened, slide, patient, study)
    tracking: Any = load_settings().section("tracking")
    planned = plan_forget(opened, **chosen)
    planned = replace(planned, models=models_that_saw(tracking, opened.uri, planned.slides))
    _tell(planned)
    if plan:
        _show(planned, as_json=as_json)
        return
    place = _place(opened, receipt)
    if not yes:
        typer.confirm("Remove for good?", abort=True, err=True)
    # Before anything goes, there is a receipt that names it.
    replace(planned, state="begun").create(place)
    written = remove(opened, **chosen, models=planned.models)
    written.write(place)
    mark_forgotten(tracking, opened.uri, written.slides, written.when)
    typer.echo(f"Receipt: {place}", err=True)
    if written.live_writers:
        typer.echo("Writers of the same slides are at work: run this again when they have ended.", err=True)
    _show(written, as_json=as_json)


def _chosen(lake: Lake, slide: str | None, patient: str | None, study: str | None) -> dict[str, Any]:
    from histolake.platform.lake.forgetting import find_patient

    if patient is not None:
        return {"patient": find_patient(lake, patient)}
    return {"slide_id": slide} if slide is not None else {"study": study}


def _place(lake: Lake, receipt: str | None) -> Location:
    """Where the receipt goes; raises `UsageError` for a place in the lake, or one that is taken."""
    from histolake.platform.errors import UsageError
    from histolake.platform.storage import Location

    place = Location.parse(receipt or f"forgotten-{datetime.now(UTC):%Y%m%dT%H%M%S%fZ}.json")
    if place.uri.startswith(lake.uri.rstrip("/") + "/"):
        raise UsageError(f"The receipt {place} would lie in the lake and keep the names in it; write it elsewhere.")
    if place.exists():
        raise UsageError(f"{place} is there already; name another file for the receipt, or move it away.")
    return place


def _tell(planned: Receipt) -> None:
    more = f" and {len(planned.slides) - NAMED} more" if len(planned.slides) > NAMED else ""
    typer.echo(f"To go from {planned.lake}, in every version: {', '.join(planned.slides[:NAMED])}{more}.", err=True)
    for entry in planned.tables:
        typer.echo(
            f"  {entry['table']}: {entry['rows']} rows, {entry['files']} files, {entry['bytes']} bytes", err=True
        )
    for what, named in (("versions", planned.versions), ("tags", planned.tags), ("models that saw it", planned.models)):
        if named:
            typer.echo(f"  {what}: {', '.join(named)}", err=True)


def _show(receipt: Receipt, *, as_json: bool) -> None:
    row: dict[str, Any] = {key: value for key, value in asdict(receipt).items() if not isinstance(value, list)}
    row |= {"slides": len(receipt.slides), "exports": len(receipt.exports), "models": len(receipt.models)}
    row |= {"versions": ", ".join(receipt.versions), "tags": ", ".join(receipt.tags)}
    columns = ["state", "asked", "slides", "pairs", "rejections", "embeddings", "exports", "images", "models"]
    show([row], columns, as_json=as_json, empty="")
