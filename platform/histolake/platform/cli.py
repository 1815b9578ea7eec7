"""The root of the `histolake` command.

Each part declares its commands in the entry-point group `histolake.commands`; they are loaded by name when they are
asked for. A command's module imports what is heavy inside its functions, so that `histolake --help` answers at once.

A part adds a command to another's group by a dotted name: the entry `lake.report` is `histolake lake report`.
"""

from __future__ import annotations

import sys
from importlib.metadata import entry_points, version
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from histolake.platform.errors import HistolakeError

__all__ = ["PartsGroup", "app", "main"]

# The order in which a newcomer meets them, by group; a command of a plug-in comes after, by name.
ORDER: dict[str, tuple[str, ...]] = {
    "": (
        "demo",
        "sample",
        "ingest",
        "lake",
        "export",
        "recipes",
        "train",
        "models",
        "embed",
        "evaluate",
        "serve",
        "doctor",
        "settings",
    ),
    "lake": (
        *("slides", "show", "rejections", "report", "history", "diff", "split", "overlap"),
        *("correct", "retile", "tag", "revert", "forget", "expire", "vacuum", "check"),
    ),
}


class PartsGroup(TyperGroup):
    """A group of its own commands and of those that the entry points add to it; imports one when it is asked for."""

    @property
    def _prefix(self) -> str:
        return f"{self.name}." if self.name else ""

    def list_commands(self, ctx: Any) -> list[str]:
        declared = (entry.name for entry in entry_points(group="histolake.commands"))
        added = {name.removeprefix(self._prefix) for name in declared if name.startswith(self._prefix)}
        names = {*super().list_commands(ctx), *(name for name in added if "." not in name)}
        order = ORDER.get(self.name or "", ())
        return [name for name in order if name in names] + sorted(names - set(order))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        own = super().get_command(ctx, cmd_name)
        if own is not None or "." in cmd_name:
            return own
        for entry in entry_points(group="histolake.commands", name=self._prefix + cmd_name):
            return _as_command(entry.load(), cmd_name)
        return None


def _as_command(target: Any, name: str) -> Any:
    """A Typer application as it is; a function as an application of one command."""
    if not isinstance(target, typer.Typer):
        single = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")
        single.command(name)(target)
        target = single
    command = typer.main.get_command(target)
    command.name = name
    return command


app = typer.Typer(
    cls=PartsGroup,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"histolake {version('histolake')}")
        raise typer.Exit


@app.callback()
def root(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    show_version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    """A data lake and training platform for histology paired with spatial gene expression.

    Try it: `histolake demo`. Then ingest sections of your own: `histolake ingest DIR --lake URI --cohort NAME`.
    """


def main() -> None:
    """Run the command line; an error of ours is one sentence on stderr and its exit code."""
    debug = "--debug" in sys.argv
    if debug:
        # Accepted anywhere on the line, because that is where people add it.
        sys.argv = [sys.argv[0], "--debug", *(word for word in sys.argv[1:] if word != "--debug")]
    try:
        app()
    except HistolakeError as error:
        if debug:
            raise
        typer.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
