"""`enginehouse status`: what the cluster serves, on which backends, and why one is not live."""

from __future__ import annotations

from typing import Annotated, Any

import orjson
import typer
from rich import box
from rich.table import Table

from enginehouse.cluster import connect
from enginehouse.tools.cli.console import out

Address = Annotated[str, typer.Option(help="Ray cluster: `auto` for the one of this machine, or host:port.")]


def status(address: Address = "auto", json: Annotated[bool, typer.Option(help="Print JSON.")] = False) -> None:
    """Show models, versions, backends, replicas, and why a backend is not live."""
    with connect.connected(address):
        from enginehouse.faces.python.client import Client

        document = Client(is_embedded=False).status()
    if json:
        typer.echo(orjson.dumps(document, option=orjson.OPT_INDENT_2).decode())
    else:
        show(document)


def show(document: dict[str, Any]) -> None:
    """Print a status document: one table of models and backends, below it why a backend is not live or all is slow."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for column in ("model", "state", "backend", "is", "artifact", "precision", "warm"):
        table.add_column(column, no_wrap=True)
    reasons: dict[str, None] = {}
    notes: list[str] = []
    for entry in document["models"]:
        version = entry["serving"] or "-"
        shown = version if version == entry["wanted"] else f"{version} -> {entry['wanted']}"
        # A request is answered while something else is loaded, or could not be.
        state = entry["state"] if entry["state"] == "ready" or not entry["ready"] else f"ready, {entry['state']}"
        head = (f"{entry['name']}@{shown}", state)
        if entry["settings"]:
            told = ", ".join(f"{name} {value}" for name, value in entry["settings"].items())
            notes.append(f"{entry['name']}@{entry['wanted']}: {told}")
        if entry["left_out"]:
            notes.append(f"{entry['name']}@{entry['wanted']}: {entry['left_out']}")
        if entry["reason"]:
            reasons[f"{entry['name']}@{entry['wanted']}: {entry['reason']}"] = None
        for backend in entry["backends"] or [None]:
            table.add_row(*head, *_cells(backend))
            head = ("", "")
            if backend and backend["reason"]:
                reasons[f"{backend['pool']}: {backend['reason']}"] = None
            if backend and backend["inputs_only"]:
                reasons[f"{entry['name']}: {backend['pool']} answers {backend['inputs_only']} only"] = None
    out.print(table)
    for reason in [*reasons, *notes]:
        out.print(f"  {reason}", highlight=False, markup=False)
    out.print(f"  store: {document['store']}", highlight=False, markup=False)
    if missing := document["missing_flags"]:
        told = f"slower than it could be: Ray was started without {' '.join(missing)}"
        out.print(f"  {told}; see `enginehouse doctor --address ...`", highlight=False, markup=False)


def _cells(backend: dict[str, Any] | None) -> tuple[str, ...]:
    if backend is None:
        return ("-",) * 5
    replicas = f"{backend['ready']}/{backend['replicas']}"
    return (backend["pool"], backend["state"], backend["artifact"], backend["precision"], replicas)
