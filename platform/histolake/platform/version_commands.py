"""Commands for the versions of a lake: `histolake lake history`, `tag`, `revert` and `expire`."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from histolake.platform.commands import JsonFlag, LakeOption, VersionOption, WhereOption, open_lake, show

if TYPE_CHECKING:
    from histolake.platform.lake.expire import Models

__all__ = ["expire", "history", "revert", "tag"]

PlanFlag = Annotated[bool, typer.Option("--plan", help="Show what would be done, and do nothing.")]
YesFlag = Annotated[bool, typer.Option("--yes", help="Do not ask.")]


def history(
    lake_uri: LakeOption = None,
    where: WhereOption = None,
    last: Annotated[int | None, typer.Option("--last", min=1, help="Only so many versions, the newest.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """List the lake's versions: when, what each did, the tags that name it, and with what software.

    `published` counts the slides that came in by an ingest, `replaced` those of them that took another's place,
    `retired` the rows that a version took out. With --where only slides for which it is true are counted; `histolake
    lake diff A B` names them. Versions below the floor that `lake expire` set are marked as expired.

    Example: `histolake lake history --lake /data/lake --last 20`
    """
    from histolake.platform.lake.history import LOG_COMMITS
    from histolake.platform.lake.history import history as entries

    # A version that did nothing to tell of (the first half of a cleaning) is not listed, but has a commit.
    commits = min(LOG_COMMITS, 4 * last) if last else LOG_COMMITS
    listed = [entry.flat() for entry in entries(open_lake(lake_uri), where, commits=commits)]
    listed = listed[-last:] if last else listed
    for row in listed:
        row["did"] += " (expired)" if row["expired"] and not as_json else ""
    columns = ["version", "when", "did", "pairs", "tags", "software"]
    if not as_json:
        listed = [{**row, "when": row["when"] and f"{row['when']:%Y-%m-%d %H:%M:%S}"} for row in listed]
    show(listed, columns, as_json=as_json, empty="No versions yet.")


def tag(
    name: Annotated[
        str | None, typer.Argument(help="The tag, such as paper-2026; without one, all are listed.")
    ] = None,
    lake_uri: LakeOption = None,
    version: VersionOption = None,
    note: Annotated[str, typer.Option("--note", help="What it is for.")] = "",
    move: Annotated[bool, typer.Option("--move", help="The tag may leave the version that it names now.")] = False,
    remove: Annotated[bool, typer.Option("--remove", help="Take the tag away; its version stays.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Give a version a name, or list the names. A tagged version is never expired.

    Wherever a version is asked for, a tag may stand: `--version paper-2026`. Setting a tag is a commit of the
    catalogue, so the newest version counts up by one; its slides are the same. A tag's name stays in the table's log:
    put no person's name in it. A note can be forgotten.

    Example: `histolake lake tag paper-2026 --version 12 --note "Figure 3" --lake /data/lake`
    """
    from histolake.platform.errors import UsageError
    from histolake.platform.lake.versions import remove_tag, set_tag, tags

    opened = open_lake(lake_uri)
    if name is None:
        if version is not None or note or move or remove:
            raise UsageError("Name a tag, such as `histolake lake tag paper-2026`; without one, all are listed.")
        found = tags(opened)
    elif remove:
        gone = remove_tag(opened, name)
        typer.echo(f"{name} no longer names version {gone.version}.", err=True)
        found = []
    else:
        found = [set_tag(opened, name, version, note=note, move=move)]
    rows = [asdict(entry) for entry in found]
    show(rows, ["name", "version", "when", "note"], as_json=as_json, empty="" if remove else "No tags.")


def revert(
    to: Annotated[str, typer.Option("--to", help="The version to go back to: a number or a tag.")],
    lake_uri: LakeOption = None,
    where: Annotated[
        str | None, typer.Option("--where", help="Only slides for which this is true, there or now.", metavar="SQL")
    ] = None,
    slide: Annotated[list[str] | None, typer.Option("--slide", help="Only this slide; may be repeated.")] = None,
    plan: PlanFlag = False,
    yes: YesFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Publish a new version whose slides are those of an earlier one. Nothing is lost: revert again to undo it.

    It undoes ingests, replacements, refusals and corrections since then. What was forgotten stays forgotten.

    Example: `histolake lake revert --to 12 --where "cohort = 'her2st'" --plan --lake /data/lake`
    """
    from histolake.platform.lake.revert import plan_revert
    from histolake.platform.lake.revert import revert as go_back

    opened = open_lake(lake_uri)
    planned = plan_revert(opened, to, where=where, slide_ids=slide)
    rows = [change.flat() for change in planned.changes]
    columns = ["change", "slide_id", "pairs_before", "pairs_after", "values"]
    show(rows, columns, as_json=as_json, empty="")
    kinds = Counter(change.change for change in planned.changes)
    counted = ", ".join(f"{n} {kind}" for kind, n in kinds.items()) or "only refusals"
    if not planned.restored and not planned.retired:
        typer.echo(f"Version {planned.newest} is as version {planned.to} already.", err=True)
        return
    if plan:
        typer.echo(f"Reverting {opened.uri} to version {planned.to}: {counted}. Nothing was done.", err=True)
        return
    if not yes:
        typer.confirm(f"Revert {opened.uri} to version {planned.to} ({counted})?", abort=True, err=True)
    done = go_back(opened, planned)
    typer.echo(f"Version {done} is as version {planned.to} was: {counted}.", err=True)


def expire(
    before: Annotated[str, typer.Option("--before", help="The oldest version to keep: a number or a tag.")],
    lake_uri: LakeOption = None,
    plan: PlanFlag = False,
    yes: YesFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Give up the versions before one, for good; `histolake lake vacuum` then gives back what only they held.

    Versions that a registered model was trained on, that a tag names, or that somebody is reading are never expired:
    the command says which, and does nothing. The registry that is asked is the one of `tracking.uri`.

    Example: `histolake lake expire --before 40 --plan --lake /data/lake`
    """
    from histolake.platform.lake.expire import expire as give_up
    from histolake.platform.lake.expire import plan_expiry

    opened = open_lake(lake_uri)
    models, registry = _models(opened.uri)
    planned = plan_expiry(opened, before, models)
    row = {name: value for name, value in asdict(planned).items() if name != "pins"}
    row["pinned_by"] = "; ".join(map(str, planned.pins))
    known = f"{len(list(models()))} models of this lake in the registry {registry}"
    if plan or (not planned.pins and not planned.versions and not planned.slides):
        show([row], list(row), as_json=as_json, empty="")
        typer.echo(f"{known}. Nothing was done.", err=True)
        return
    if not yes and not planned.pins:
        typer.echo(f"{known}.", err=True)
        counted = f"{planned.slides} rows of slides, {planned.ingests} ingests with {planned.pairs} pairs"
        typer.confirm(f"Expire versions {planned.floor} to {planned.before - 1} ({counted})?", abort=True, err=True)
    give_up(opened, before, models)
    show([row], list(row), as_json=as_json, empty="")
    typer.echo(f"{known}. `histolake lake vacuum` gives back the files.", err=True)


def _models(lake_uri: str) -> tuple[Models, str]:
    """Who was trained on which version, asked anew at every call, and where that is known."""
    from histolake.platform.lake.expire import Pin
    from histolake.platform.settings import load_settings
    from histolake.platform.tracking import tracking_uri, trained_on

    settings: Any = load_settings().section("tracking")

    def pins() -> list[Pin]:
        return [
            Pin(version=model.lake_version, kind="model", name=model.name) for model in trained_on(settings, lake_uri)
        ]

    return pins, re.sub(r"//[^/@]*@", "//", tracking_uri(settings))
