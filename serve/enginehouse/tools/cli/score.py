"""`enginehouse score`: batch scoring of a file through the live backends."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from enginehouse.cluster import connect
from enginehouse.contract.errors import ConfigError
from enginehouse.contract.store import Store
from enginehouse.tools.cli.console import out, say
from enginehouse.tools.cli.status import Address


def score(
    model: Annotated[str, typer.Argument(help="Model that is served.")],
    source: Annotated[str, typer.Argument(metavar="INPUT", help="Parquet file or folder, or .npz file.")],
    target: Annotated[str, typer.Argument(metavar="OUTPUT", help="Folder for the Parquet results; must be new.")],
    id_column: Annotated[str, typer.Option(help="Column that results are joined by.")] = "id",
    min_actors: Annotated[int, typer.Option(min=1, help="Fewest scoring actors.")] = 1,
    max_actors: Annotated[int, typer.Option(min=1, help="Most scoring actors.")] = 4,
    address: Address = "auto",
) -> None:
    """Score every row of INPUT with Ray Data; OUTPUT gets the ids, the outputs and the backend that answered."""
    if "://" not in target and Path(target).exists() and any(Path(target).iterdir()):
        raise ConfigError(f"{target} is not empty; name a new folder")
    with connect.connected(address):
        from enginehouse.cluster import deploy
        from enginehouse.faces.scoring import job

        catalog = deploy.live_catalog()
        config = catalog.find(model)
        if config is None:
            raise ConfigError(f"model {model!r} is not served; served: {', '.join(m.id for m in catalog.models)}")
        signature = Store(catalog.store).manifest(model, config.version).request_signature()
        say(f"scoring {source} with {config.id}")
        started = time.monotonic()
        scored = job.score(
            model,
            signature,
            _absolute(source),
            _absolute(target),
            id_column=id_column,
            min_actors=min_actors,
            max_actors=max(min_actors, max_actors),
            progress=sys.stderr.isatty(),
        )
        took = time.monotonic() - started
    speed = f"{scored.rows} rows in {took:.1f} s ({scored.rows / took:.0f} rows/s)"
    out.print(f"{speed} by {', '.join(scored.backends)} -> {target}", highlight=False)


def _absolute(path: str) -> str:
    """Ray Data's workers have another working directory."""
    return path if "://" in path else str(Path(path).resolve())
