"""`histolake lake overlap A B`: does an evaluation set share anything with a training set?"""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from histolake.platform.commands import JsonFlag, LakeOption, VersionOption, open_lake, show

__all__ = ["overlap"]


def overlap(
    a: Annotated[str, typer.Argument(metavar="A", help="A set of slides, such as model:omiclip@champion.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Another, such as where:\"cohort = 'dlpfc'\".")],
    lake_uri: LakeOption = None,
    version: VersionOption = None,
    tracking: Annotated[
        str | None, typer.Option("--tracking", help="MLflow tracking URI; the setting tracking.uri if not given.")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="A shared study ends with 1 as well.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Tell what two sets of slides share, the worst first: slides, files, look-alikes, patients, studies.

    A set is one word: `all`, `where:SQL`, `slides:A,B` or `slides:@FILE`, `split:FILE#SIDE`, `version:N` (or a tag),
    `model:NAME@ALIAS` (the slides that it trained on; `#test` those of another side), `lake:URI` (a whole other lake)
    or `lake:URI#SET` (a set in it).

    Look-alikes are those that the catalogue notes and those that the spots' profiles and the pictures' hashes tell now,
    so slides of two lakes are compared too. A study in which a patient is not known counts as one patient (`unit`).
    Ends with 0 if nothing leaks, also where only a study of other patients is shared; else with 1.

    Example: `histolake lake overlap model:omiclip@champion lake:s3://atlas/dlpfc --lake /data/lake`

    Example: `histolake lake overlap split:split.json#train split:split.json#test --lake /data/lake`
    """
    from histolake.ingestion.overlap.sets import Source, read_set
    from histolake.ingestion.overlap.shared import LEAKS, find_shared, verdict
    from histolake.platform.settings import load_settings

    settings = load_settings({"tracking.uri": tracking})
    source = Source(open_lake=lambda: open_lake(lake_uri), version=version, tracking=settings.section("tracking"))
    one, other = read_set(a, source), read_set(b, source)
    found = find_shared(one, other, settings.section("duplicates"))
    for slides in (one, other):
        for note in slides.notes:
            typer.echo(note, err=True)
        blind = [row for row in slides.slides if not row["profile_sketch"] and not row["image_hash"]]
        if blind:
            typer.echo(
                f"{len(blind)} of {len(slides.slides)} slides of {slides.name} have neither a sketch of their spots "
                "nor a picture's hash, and are compared by name only.",
                err=True,
            )
    show([asdict(shared) for shared in found], ["kind", "what", "a", "b"], as_json=as_json, empty="Nothing is shared.")
    typer.echo(verdict(found, one, other), err=True)
    if any(shared.kind in LEAKS for shared in found) or (strict and found):
        raise typer.Exit(1)
