"""The command line: build, inspect, serve, models, status, explain, infer, score, bench, doctor."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import version as installed_version
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from enginehouse.contract.errors import EnginehouseError
from enginehouse.tools.cli import console

#: The function of each command, or what holds its own commands, as MODULE:NAME.
COMMANDS = {
    "build": "build:build",
    "inspect": "inspect:inspect",
    "serve": "serve:serve",
    "models": "models:app",
    "status": "status:status",
    "explain": "explain:explain",
    "infer": "infer:infer",
    "score": "score:score",
    "bench": "bench:bench",
    "doctor": "doctor:command",
}


class _Imported(Mapping[str, Any]):
    """Commands by name, each imported when it is asked for: all of them take half a second."""

    def __getitem__(self, name: str) -> Any:
        module, _, attribute = COMMANDS[name].partition(":")
        found = getattr(importlib.import_module(f"{__name__}.{module}"), attribute)
        alone = found if isinstance(found, typer.Typer) else typer.Typer(add_completion=False)
        if alone is not found:
            alone.command()(found)
        command = typer.main.get_command(alone)
        command.name = name
        return command

    def __iter__(self) -> Iterator[str]:
        return iter(COMMANDS)

    def __len__(self) -> int:
        return len(COMMANDS)


class _Commands(TyperGroup):
    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = _Imported()  # type: ignore[assignment]


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Build engines from a trained model, and serve the best one that is alive.",
)


@app.callback(invoke_without_command=True)
def version(show: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Build engines from a trained model, and serve the best one that is alive."""
    if show:
        typer.echo(installed_version("enginehouse"))


def main() -> None:
    """Run the command line; an error of ours is one line on stderr and exit code 1."""
    try:
        app()
    except EnginehouseError as error:
        console.fail(error)
        sys.exit(1)
