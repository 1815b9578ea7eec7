"""Commands of the platform: `histolake settings`, `histolake lake ...`, `histolake export`."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

__all__ = ["settings"]

JsonFlag = Annotated[bool, typer.Option("--json", help="One JSON array on stdout, nothing else.")]


def settings(as_json: JsonFlag = False) -> None:
    """Show every setting, its value and where it came from: flag, environment, file or default.

    Set one with a variable (`HISTOLAKE_QUALITY__MIN_GENES=300`) or in histolake.toml (`[quality]`, `min_genes = 300`).
    """
    from rich.console import Console
    from rich.table import Table

    from histolake.platform.settings import load_settings

    loaded = load_settings()
    rows = loaded.describe()
    if as_json:
        typer.echo(json.dumps([asdict(row) for row in rows], indent=1))
        return
    table = Table("setting", "value", "from", "variable", box=None)
    for row in rows:
        table.add_row(row.name, row.value, row.source, row.env)
    Console().print(table)
    Console(stderr=True).print(f"file: {loaded.file or 'none (histolake.toml here would be read)'}")
