"""The command line: build, inspect, serve, models, status, explain, infer, score, bench, doctor."""

from __future__ import annotations

import importlib.metadata
import sys
from typing import Annotated

import typer

from enginehouse.contract.errors import EnginehouseError
from enginehouse.tools.cli import bench, build, console, doctor, explain, infer, inspect, models, score, serve, status

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Build engines from a trained model, and serve the best one that is alive.",
)


@app.callback(invoke_without_command=True)
def version(show: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Build engines from a trained model, and serve the best one that is alive."""
    if show:
        typer.echo(importlib.metadata.version("enginehouse"))


app.command()(build.build)
app.command()(inspect.inspect)
app.command()(serve.serve)
app.add_typer(models.app, name="models")
app.command()(status.status)
app.command()(explain.explain)
app.command()(infer.infer)
app.command()(score.score)
app.command()(bench.bench)
app.command("doctor")(doctor.command)


def main() -> None:
    """Run the command line; an error of ours is one line on stderr and exit code 1."""
    try:
        app()
    except EnginehouseError as error:
        console.fail(error)
        sys.exit(1)
