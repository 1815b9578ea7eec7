"""`histolake doctor STORE`."""

from __future__ import annotations

from typing import Annotated

import typer

from histolake.platform.commands import JsonFlag

__all__ = ["doctor"]


def doctor(
    store: Annotated[str, typer.Argument(help="Where a lake is or shall be: /path, file:// or s3://bucket[/prefix].")],
    as_json: JsonFlag = False,
) -> None:
    """Ask a store whether it does what a lake needs, and say what to do where it does not. Ends with 1 if it fails.

    On S3: are objects read as they were put, in parts too; is a put with `If-None-Match: *` refused where the object is
    there, also when eight writers create it at once (without that rows are lost while every writer reports success);
    do listing, deletion and the clock agree. On disk: links, renames, free space. Everything is tried below a random
    name, which is removed. It takes one to three seconds.

    Example: `histolake doctor s3://bucket/lake`
    """
    from rich.console import Console
    from rich.table import Table

    from histolake.platform.commands import show
    from histolake.platform.doctor.examination import examine
    from histolake.platform.storage import Location

    diagnosis = examine(Location.parse(store))
    if as_json:
        show(diagnosis.rows(), [], as_json=True, empty="")
    else:
        table = Table("", "probe", "figure", "limit", "means", box=None, header_style="bold")
        for probe in diagnosis.probes:
            mark = "[green]holds[/]" if probe.ok else "[red]FAILS[/]"
            table.add_row(mark, probe.probe, probe.figure or "", probe.limit or "", probe.means)
        console = Console()
        console.print(table) if console.is_terminal else Console(width=200).print(table)
    if diagnosis.ok:
        said = "all holds"
    elif diagnosis.holds_a_lake:
        said = "for one writer only (setting store.sole_writer), never for several"
    else:
        said = "not for a lake"
    typer.echo(f"{diagnosis.store}: {said} ({diagnosis.seconds:.2f} s)", err=True)
    if not diagnosis.ok:
        raise typer.Exit(1)
