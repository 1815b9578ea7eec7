"""Commands with which curators look into a lake: `histolake lake show` and `histolake lake diff`."""

from __future__ import annotations

import json
from collections import Counter
from typing import Annotated, Any

import typer

from histolake.platform.commands import (
    JsonFlag,
    LakeOption,
    VersionOption,
    WhereOption,
    flat,
    open_lake,
    open_version,
    show,
)

__all__ = ["diff", "show_slide"]


def diff(
    earlier: Annotated[str, typer.Argument(help="A version or a tag, as `histolake lake history` lists them.")],
    later: Annotated[str | None, typer.Argument(help="A later version; the newest if not given.")] = None,
    lake_uri: LakeOption = None,
    as_json: JsonFlag = False,
) -> None:
    """List what became of the slides between two versions: added, replaced, corrected, retired, refused since.

    A replaced slide has other pairs; a corrected one has the same pairs and other metadata. The columns that changed
    are named, with their values before and after.

    Example: `histolake lake diff 3 5 --lake /data/lake`
    """
    from histolake.platform.lake.diff import diff as compare

    lake = open_lake(lake_uri)
    before, after = lake.at(earlier), lake.at(later)
    found = compare(before, after)
    rows = [difference.flat() for difference in found]
    columns = ["change", "slide_id", "pairs_before", "pairs_after", "values"]
    show(rows, columns, as_json=as_json, empty=f"Versions {before.version} and {after.version} hold the same.")
    pairs = [sum(n or 0 for n in snapshot.slides()["n_pairs"].to_pylist()) for snapshot in (before, after)]
    kinds = Counter(difference.change for difference in found)
    said = ", ".join(f"{n} {kind}" for kind, n in kinds.items()) or "nothing changed"
    counted = f"{pairs[0]} -> {pairs[1]} pairs ({pairs[1] - pairs[0]:+d})"
    typer.echo(f"version {before.version} -> {after.version}: {said}; {counted}", err=True)


# What `lake show` tells, in groups. A column that is in none of them is told at the end.
_GROUPS = {
    "identity": ("slide_id", "status", "cohort", "section", "source", "reader", "simulated", "accession", "licence"),
    "patient and study": ("study", "patient", "organ", "disease", "species", "technology"),
    "image and scale": ("image", "image_width_px", "image_height_px", "um_per_px", "scale_from", "scales"),
    "geometry": ("spot_diameter_um", "pitch_um", "spot_um", "niche_um"),
    "spots": ("n_spots", "n_pairs", "n_rejections", "expression_unit"),
    "flags and likeness": ("flags", "look_alikes", "image_hash"),
    "versions": (
        *("first_published", "published_in", "retired_in", "reverted_to", "when", "software"),
        *("ingest_id", "source_digest", "settings_digest"),
    ),
}
_UNITS = {"_um": "um", "_px": "px"}


def show_slide(
    slide_id: Annotated[str | None, typer.Argument(help="The slide, as `histolake lake slides` lists it.")] = None,
    lake_uri: LakeOption = None,
    version: VersionOption = None,
    where: WhereOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Show all that is known of a slide: what it is, its scale and who says so, its spots, what was refused and why.

    What was corrected is told with what the source says. --where shows every slide for which it is true.

    Example: `histolake lake show her2st/C2 --lake /data/lake`
    """
    from histolake.platform.errors import SlideNotFoundError, UsageError

    if slide_id is None and where is None:
        raise UsageError("Name a slide, or choose some with --where; `histolake lake slides` lists them.")
    snapshot = open_version(lake_uri, version)
    table = snapshot.slides(include_refused=True, where=where)
    rows = [row for row in table.to_pylist() if slide_id in (None, row["slide_id"])]
    if not rows:
        named = f"no slide {slide_id}" if slide_id else f"no slide with {where}"
        raise SlideNotFoundError(f"Version {snapshot.version} has {named}; see `histolake lake slides`.")
    ids = {row["ingest_id"] for row in rows}
    refused = [row for row in snapshot.rejections().to_pylist() if row["ingest_id"] in ids]
    rules = {ingest_id: Counter(r["rule"] for r in refused if r["ingest_id"] == ingest_id) for ingest_id in ids}
    if as_json:
        told = [flat(r) | {"refused_by_rule": _counted(rules[r["ingest_id"]])} for r in rows]
        typer.echo(json.dumps(told, indent=1, default=str))
        return
    for row in rows:
        whole = next((r for r in refused if r["ingest_id"] == row["ingest_id"] and r["barcode"] is None), None)
        _print(row, rules[row["ingest_id"]], whole)


def _print(row: dict[str, Any], rules: Counter[str], whole: dict[str, Any] | None) -> None:
    """One slide, group by group; empty values are left out, but for what a curator is to fill in."""
    from rich.console import Console

    console = Console(width=None if Console().is_terminal else 250, highlight=False)
    said = {entry["column"]: entry["said"] for entry in row["corrected"] or []}
    console.print(f"[bold]{row['slide_id']}[/]", soft_wrap=True)
    for group, columns in _GROUPS.items():
        lines = [(name, row[name]) for name in columns if row[name] not in (None, []) or group == "patient and study"]
        if group == "spots":
            lines += [(f"refused by {rule}", n) for rule, n in rules.most_common()] if whole is None else []
        if lines:
            console.print(f"[bold]{group}[/]")
        for name, value in lines:
            note = f"  (corrected; the source says {said[name] or 'nothing'})" if name in said else ""
            console.print(f"  {name:<18} {_value(name, value)}{note}", markup=False, soft_wrap=True)
        if group == "identity" and whole is not None:
            console.print(f"  {'refused by':<18} {whole['rule']}: {whole['reason']}", markup=False, soft_wrap=True)


def _value(name: str, value: Any) -> str:
    from histolake.platform.licences import licence_id

    if value is None:
        return "not known"
    if name == "scales":
        return "; ".join(f"{entry['origin']} {entry['um_per_px']:.4g} um/px" for entry in value)
    if name == "licence" and (known := licence_id(value)) not in (None, value):
        return f"{value} ({known})"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, float):
        value = f"{value:.4g}"
    unit = " um/px" if name == "um_per_px" else next((f" {u}" for end, u in _UNITS.items() if name.endswith(end)), "")
    return f"{value}{unit}"


def _counted(rules: Counter[str]) -> str:
    return ", ".join(f"{rule} {n}" for rule, n in rules.most_common())
