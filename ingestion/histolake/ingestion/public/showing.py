"""Public cohorts on the terminal: the list, and the progress of a download (stderr)."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Any

import typer

from histolake.ingestion.public.catalogue import MEGABYTE, Catalogue

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["FileBars", "list_cohorts"]


def list_cohorts(console: Console, catalogue: Catalogue, *, as_json: bool) -> None:
    """The list as a table on stdout, or as one JSON array."""
    rows = catalogue.rows()
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
        return
    from rich.console import Console as Output
    from rich.table import Table

    table = Table("name", "organ", "species", "disease", "Space Ranger", "stain", "MB", "checksums", box=None)
    for column in table.columns:
        column.overflow = "fold"
    table.columns[0].no_wrap = True
    for row in rows:
        size = f"{row['known_bytes'] / MEGABYTE:.0f}" if row["known_bytes"] else ""
        size += "+" if size and row["size_bytes"] is None else ""
        sums = "sha256" if row["checksums"] == "sha256" else "pinned on first use"
        facts = (row["organ"], row["species"], row["disease"] or "", row["space_ranger"], row["stain"] or "")
        table.add_row(row["name"], *facts, size, sums)
    out = Output()
    # A file or a pipe has no width: long names stay whole there.
    out = out if out.is_terminal else Output(width=max(160, out.width))
    out.print(table)
    for cohort in catalogue.cohorts.values():
        if len(cohort.sections) > 1:
            members = ", ".join(section.name for section in cohort.sections)
            out.print(f"{cohort.name}: {cohort.title} ({members})", highlight=False, soft_wrap=True)
    console.print(
        f"All: {catalogue.source}, {catalogue.licence} ({catalogue.licence_url}), Visium. Empty cells are not "
        "known here, and + is more, of unknown size. Pages and files: --json. "
        "Fetch one: histolake sample NAME --to DIR",
        highlight=False,
        soft_wrap=True,
    )


class FileBars:
    """A bar a file, in bytes, made when it is first told of. Files may be told of from several threads."""

    def __init__(self, console: Console) -> None:
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

        columns = ("{task.description}", BarColumn(), DownloadColumn(), TimeRemainingColumn())
        self._console = console
        self._bars = Progress(*(TextColumn(c) if isinstance(c, str) else c for c in columns), console=console)
        self._tasks: dict[str, Any] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> FileBars:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars.live.is_started:
            self._bars.stop()

    def say(self, line: str) -> None:
        """A line above the bars."""
        self._console.print(line, highlight=False, soft_wrap=True, markup=False)

    def tell(self, what: str, done: int, of: int | None) -> None:
        """How far a file is, in bytes; `of` is None where the server does not tell."""
        with self._lock:
            if what not in self._tasks:
                if not self._tasks and self._console.is_terminal:
                    self._bars.start()
                self._tasks[what] = self._bars.add_task(what, total=of)
            if done == of and not self._console.is_terminal and self._tasks[what] is not None:
                # A log has no bars: a line a file.
                self.say(f"{what}: {done / MEGABYTE:.1f} MB are there")
                self._tasks[what] = None
            elif self._tasks[what] is not None:
                self._bars.update(self._tasks[what], completed=done, total=of)
