"""`enginehouse status`: what the cluster serves, on which backends, and why one is not live."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import orjson
import typer
from rich import box
from rich.table import Table

from enginehouse.tools.cli.cluster import on_cluster
from enginehouse.tools.cli.console import out, say

#: Characters of a line of reasons, and models that one names.
LINE, MOST_NAMES = 200, 3

Address = Annotated[str, typer.Option(help="Ray cluster: `auto` for the one of this machine, or host:port.")]


def status(address: Address = "auto", json: Annotated[bool, typer.Option(help="Print JSON.")] = False) -> None:
    """Show models, versions, backends, replicas, and why a backend is not live."""
    with on_cluster(address):
        from enginehouse.faces.python.client import Client

        document = Client(is_embedded=False).status()
    if json:
        typer.echo(orjson.dumps(document, option=orjson.OPT_INDENT_2).decode())
    else:
        show(document)


def show(document: dict[str, Any]) -> None:
    """Print a status document: one table of models and backends, below it why a backend is not live or all is slow.

    Reasons are cut to a line each. What is so for several models is said once, with their names.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for column in ("model", "state", "backend", "is", "artifact", "precision", "warm"):
        table.add_column(column, no_wrap=True)
    reasons: dict[str, list[str]] = {}
    notes: list[str] = []
    for entry in document["models"]:
        version = entry["serving"] or "-"
        shown = version if version == entry["wanted"] else f"{version} -> {entry['wanted']}"
        # A request is answered while something else is loaded, or could not be.
        state = entry["state"] if entry["state"] == "ready" or not entry["ready"] else f"ready, {entry['state']}"
        head = (f"{entry['name']}@{shown}", state)
        name = f"{entry['name']}@{entry['wanted']}"
        if entry["settings"]:
            told = ", ".join(f"{name} {value}" for name, value in entry["settings"].items())
            notes.append(f"{name}: {told}")
        if entry["left_out"]:
            notes.append(f"{name}: {entry['left_out']}")
        if entry["reason"]:
            reasons.setdefault(entry["reason"], []).append(name)
        for backend in entry["backends"] or [None]:
            table.add_row(*head, *_cells(backend))
            head = ("", "")
            if backend and backend["reason"]:
                # That there is no such hardware has nothing to do with a model.
                whose = [] if backend["state"] == "no-hardware" else [name]
                reasons.setdefault(f"{backend['pool']}: {backend['reason']}", []).extend(whose)
            if backend and backend["inputs_only"]:
                reasons.setdefault(f"{backend['pool']} answers {backend['inputs_only']} only", []).append(name)
    out.print(table)
    notes += _listening_everywhere(document["pools"])
    lines = [f"{_names(names)}: {reason}" if names else reason for reason, names in reasons.items()]
    is_cut = False
    for line in [*lines, *notes]:
        told = _in_a_line(line)
        is_cut = is_cut or told != line
        out.print(f"  {told}", highlight=False, markup=False, soft_wrap=True)
    if is_cut:
        out.print("  the whole reasons: `enginehouse status --json`", highlight=False, markup=False)
    out.print(f"  store: {document['store']}", highlight=False, markup=False)
    if missing := document["missing_flags"]:
        told = f"slower than it could be: Ray was started without {' '.join(missing)}"
        out.print(f"  {told}; see `enginehouse doctor --address ...`", highlight=False, markup=False)


def failing(entry: dict[str, Any]) -> list[dict[str, Any]]:
    """The backends of a model in a status document that failed to load it."""
    return [backend for backend in entry["backends"] if backend["state"] == "failing"]


def say_what_failed(entry: dict[str, Any]) -> None:
    """One line for each backend that a model which answers is served without, because it failed to load it."""
    for backend in failing(entry) if entry["state"] == "ready" else ():
        say(f"{entry['name']}@{entry['wanted']} is served without {backend['pool']}, which failed to load it")


def _listening_everywhere(pools: Sequence[dict[str, Any]]) -> list[str]:
    return [
        f"{pool['name']}: its replica for {', '.join(pool['everywhere'])} listens on all interfaces of its machine, "
        "which has no such address; keep others off by a firewall or start Ray with another --node-ip-address"
        for pool in pools
        # Routers of the release before do not say.
        if pool.get("everywhere")
    ]


def _names(models: list[str]) -> str:
    """Some models by name, and how many more."""
    more = len(models) - MOST_NAMES
    return ", ".join(models[:MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


def _in_a_line(text: str) -> str:
    """`text` on one line, and cut where it is long: what a converter says has pages."""
    line = " ".join(text.split())
    return line if len(line) <= LINE else f"{line[: LINE - 4].rstrip()} ..."


def _cells(backend: dict[str, Any] | None) -> tuple[str, ...]:
    if backend is None:
        return ("-",) * 5
    replicas = f"{backend['ready']}/{backend['replicas']}"
    return (backend["pool"], backend["state"], backend["artifact"], backend["precision"], replicas)
