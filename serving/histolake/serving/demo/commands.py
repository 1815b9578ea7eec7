"""`histolake demo`: the whole road once, by calling the same public commands that a user would."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["demo"]


def demo(
    out: Annotated[
        Path, typer.Option("--out", help="Folder for the report, the lake, the runs and the sample.")
    ] = Path("demo-output"),
    from_dir: Annotated[
        str | None,
        typer.Option("--from", help="A folder of real sections; else HISTOLAKE_SAMPLE_DIR; else others."),
    ] = None,
    port: Annotated[int, typer.Option("--port", help="TCP port of the server; 0 takes a free one.")] = 0,
) -> None:
    """Take sections from files to a served answer, and write a report of it.

    Chooses a cohort (sample): yours; else the smallest public one, where the network has it (asked for three seconds;
    HISTOLAKE_PUBLIC__PROBE=false does not ask); else a simulated one. Publishes it (ingest), exports it, trains two
    recipes, evaluates both, serves the better one and asks it about sections that it has not seen. Everything it makes
    is in the --out folder: report.html, summary.json, the lake, the tracked runs. Run it again: what is there already
    is reused.

    Ends with 0, or with 3 if a section was refused and the others were published.

    Example: histolake demo --from ~/sections --out my-demo
    """
    from histolake.serving.demo.road import Road

    # A plain SIGTERM would leave the command that runs now, or the server, behind.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    refused = Road(out.absolute(), from_dir, port).walk()
    if refused:
        raise typer.Exit(3)
