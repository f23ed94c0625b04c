"""`enginehouse status`: what the cluster serves, on which backends, and why one is not live."""

from __future__ import annotations

from typing import Annotated, Any

import orjson
import typer
from rich.table import Table

from enginehouse.cli.console import out

Address = Annotated[str, typer.Option(help="Ray cluster: `auto` for the one of this machine, or host:port.")]


def status(address: Address = "auto", json: Annotated[bool, typer.Option(help="Print JSON.")] = False) -> None:
    """Show models, versions, backends, replicas, and why a backend is not live."""
    from enginehouse import cluster
    from enginehouse.client import Client

    with cluster.connected(address):
        document = Client().status()
    if json:
        typer.echo(orjson.dumps(document, option=orjson.OPT_INDENT_2).decode())
    else:
        show(document)


def show(document: dict[str, Any]) -> None:
    """Print a status document as two tables."""
    out.print(f"store {document['store']}", highlight=False)
    models = Table(title="models", title_justify="left")
    for column in ("model", "wanted", "serving", "state", "backend", "artifact", "precision", "live", "why not"):
        models.add_column(column, overflow="fold")
    for entry in document["models"]:
        for index, backend in enumerate(entry["backends"] or [None]):
            head = (entry["name"], entry["wanted"], entry["serving"] or "-", entry["state"]) if not index else ("",) * 4
            models.add_row(*head, *_backend_cells(backend, entry["reason"]))
    out.print(models)
    pools = Table(title="pools", title_justify="left")
    for column in ("pool", "engine", "replicas"):
        pools.add_column(column)
    for pool in document["pools"]:
        pools.add_row(pool["name"], pool["engine"], str(pool["replicas"]))
    out.print(pools)


def _backend_cells(backend: dict[str, Any] | None, reason: str) -> tuple[str, ...]:
    if backend is None:
        return ("-", "", "", "", reason or "its manifest is being read")
    why = backend["reason"] or ("" if backend["ready"] else "loading")
    live = f"{backend['ready']}/{backend['replicas']}"
    return (backend["pool"], backend["artifact"], backend["precision"], live, why)
