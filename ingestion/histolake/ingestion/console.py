"""What the commands of the ingestion show while they run and when they end: on stderr, but for `--json`."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer

from histolake.platform.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from histolake.ingestion.metadata import Mismatch
    from histolake.ingestion.outcome import Outcome
    from histolake.ingestion.workforce import Progress

__all__ = ["REFUSED", "Bars", "end_with", "read_changes", "show_mismatches", "stderr"]

REFUSED = 3  # exit code where something was refused, or left as it was
MISMATCHES_SHOWN = 30


def stderr() -> Console:
    """The console of progress and messages."""
    from rich.console import Console

    return Console(stderr=True)


def read_changes(words: Sequence[str]) -> dict[str, object]:
    """Settings from `SECTION.KEY=VALUE`; raises `UsageError`."""
    changes: dict[str, object] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or "." not in key:
            raise UsageError(f"--set {word!r} is not SECTION.KEY=VALUE; `histolake settings` lists the keys.")
        changes[key.strip()] = value.strip()
    return changes


class Bars:
    """Progress bars with the time that is left: one a step, made when the step first tells of itself."""

    def __init__(self, console: Console) -> None:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self._bars = Progress(
            TextColumn("{task.description:>16}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left:"),
            TimeRemainingColumn(),
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
        task = self._bars.tasks[self._bars.task_ids.index(self._tasks[what])]
        if done < task.completed:  # the next wave of sections begins
            self._bars.reset(self._tasks[what], total=of)
        self._bars.update(self._tasks[what], completed=done, total=of)


def show_mismatches(console: Console, mismatches: Sequence[Mismatch], file: str | None) -> None:
    """List what the metadata tables and the sections do not agree on; all of it in a file, if one is named."""
    if file is not None:
        from histolake.platform.storage import Location

        text = io.StringIO()
        table = csv.DictWriter(text, ["kind", "table", "line", "section", "message"])
        table.writeheader()
        table.writerows(asdict(mismatch) for mismatch in mismatches)
        Location.parse(file).write_bytes(text.getvalue().encode())
    if not mismatches:
        return
    console.print(f"{len(mismatches)} mismatches of the metadata:", highlight=False)
    for mismatch in mismatches[:MISMATCHES_SHOWN]:
        console.print(f"  {mismatch}", highlight=False, markup=False, soft_wrap=True)
    if len(mismatches) > MISMATCHES_SHOWN:
        rest = len(mismatches) - MISMATCHES_SHOWN
        where = f"in {file}" if file else "name a file with --mismatches to see them"
        console.print(f"  and {rest} more; {where}", highlight=False, soft_wrap=True)


def end_with(console: Console, outcomes: Sequence[Outcome], *, workers: int, as_json: bool) -> None:
    """Show what became of each section, and end with the exit code that says so."""
    if as_json:
        typer.echo(json.dumps([outcome.flat() for outcome in outcomes], indent=1))
    _table(console, outcomes)
    console.print(_last_line(outcomes) + _cost(outcomes, workers), highlight=False, soft_wrap=True)
    if any(outcome.status in ("refused", "left") for outcome in outcomes):
        raise typer.Exit(REFUSED)


def _table(console: Console, outcomes: Sequence[Outcome]) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table("section", "read", "kept", "refused", "why", "status", box=None, pad_edge=False)
    for o in outcomes:
        why = o.rule or ", ".join(f"{rule}: {n}" for rule, n in o.refused_by_rule.items())
        notes = [*o.flags, *([f"corrected: {', '.join(o.corrected)}"] if o.corrected else [])]
        numbers = ("", "", "") if o.status in ("refused", "left") else (o.spots_read, o.spots_kept, o.spots_refused)
        table.add_row(o.section, *map(str, numbers), why, o.status + (f" ({', '.join(notes)})" if notes else ""))
    console.print(table)
    for o in outcomes:
        if o.reason:
            said = f"[bold]{escape(o.section)}[/] {o.rule}: {escape(o.reason)}"
            console.print(said, highlight=False, soft_wrap=True)


def _last_line(outcomes: Sequence[Outcome]) -> str:
    """What happened, in one line that names what was refused."""
    kinds = ("published", "unchanged", "refused", "planned", "left")
    count = {s: sum(o.status == s for o in outcomes) for s in kinds}
    said = ", ".join(f"{n} {status}" for status, n in count.items() if n) or "nothing to do"
    spots = sum(o.spots_kept for o in outcomes)
    versions = [o.lake_version for o in outcomes if o.lake_version is not None]
    at = f"; the lake is at version {max(versions)}" if versions else ""
    refused = [f"{o.slide_id} ({o.rule})" for o in outcomes if o.status == "refused"]
    why = f"; refused: {', '.join(refused)}" if refused else ""
    left = [f"{o.slide_id} ({o.rule})" for o in outcomes if o.status == "left"]
    kept = f"; left as they are: {', '.join(left)}" if left else ""
    return f"{said}; {spots} pairs{at}{why}{kept}"


def _cost(outcomes: Sequence[Outcome], workers: int) -> str:
    """What a plan would cost, in words; empty where nothing is planned."""
    costs = [(o.estimated_bytes or 0, o.estimated_seconds or 0.0) for o in outcomes if o.status == "planned"]
    if not costs:
        return ""
    size, seconds = (sum(column) for column in zip(*costs, strict=True))
    spent = f"{seconds / workers:.0f} s" if seconds < 120 * workers else f"{seconds / workers / 60:.0f} min"
    return f"; about {_bytes(size)} and {spent} on {workers} workers (measured on a few spots a section)"


def _bytes(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"
