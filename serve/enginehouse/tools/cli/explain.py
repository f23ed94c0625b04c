"""`enginehouse explain`: how a request would be routed now, and why."""

from __future__ import annotations

from typing import Annotated, Any, cast

import orjson
import typer
from rich import box
from rich.table import Table

from enginehouse.contract.config import USUAL
from enginehouse.contract.manifest import Precision
from enginehouse.tools.cli.cluster import on_cluster
from enginehouse.tools.cli.console import out
from enginehouse.tools.cli.status import Address


def explain(
    model: Annotated[str, typer.Argument(help="Model, `name` or `name@version`.")],
    rows: Annotated[int, typer.Option(min=1, help="Rows of the request.")] = 1,
    size: Annotated[int | None, typer.Option(help="Its extent along the model's cost axis.")] = None,
    deadline_ms: Annotated[float | None, typer.Option(help="Milliseconds in which the answer is wanted.")] = None,
    priority: Annotated[int, typer.Option(help="1 (first) to 9 (last).")] = USUAL,
    backend: Annotated[str | None, typer.Option(help="The only backend that may answer.")] = None,
    min_precision: Annotated[str, typer.Option(help="Leave out what is less exact: fp32, fp16, bf16, int8.")] = "int8",
    address: Address = "auto",
    json: Annotated[bool, typer.Option(help="Print JSON.")] = False,
) -> None:
    """Show how a request would be routed now: the backends in the order in which they would be tried, and why."""
    name, _, version = model.partition("@")
    with on_cluster(address):
        from enginehouse.faces.python.client import Client

        document = Client(is_embedded=False).explain(
            name,
            rows,
            size,
            version=version or None,
            deadline_s=None if deadline_ms is None else deadline_ms / 1e3,
            priority=priority,
            backend=backend,
            min_precision=cast(Precision, min_precision),
        )
    if json:
        typer.echo(orjson.dumps(document, option=orjson.OPT_INDENT_2).decode())
    else:
        show(document)


def show(document: dict[str, Any]) -> None:
    """Print what a router explains: one row a backend, first those that may answer, best first; below, each reason.

    Reasons have lines of their own and wrap: beside the figures a narrow terminal would have no room for them.
    """
    out.print(document["model"], style="bold", highlight=False, markup=False)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True, min_width=len(str(len(document["backends"]))))
    for column in ("backend", "artifact", "replicas"):
        table.add_column(column, overflow="fold")
    for column in ("wait\nms", "compute\nms", "in all\nms", "cost\na row"):
        table.add_column(column, overflow="fold", justify="right")
    reasons = dict(document["out"])
    for place, entry in enumerate(document["backends"], 1):
        table.add_row(
            str(place) if entry["may_answer"] else "-",
            entry["pool"],
            f"{entry['artifact']} ({entry['precision']})",
            str(entry["replicas"]),
            *(_shown(entry[key]) for key in ("wait_ms", "compute_ms", "predicted_ms", "cost")),
        )
        bounds = f"answers {entry['inputs_only']} only" if entry["inputs_only"] else ""
        reasons[entry["pool"]] = entry["reason"] or bounds
    for pool in document["out"]:
        table.add_row("-", pool)
    out.print(table)
    for pool, reason in reasons.items():
        if reason:
            out.print(f"  {pool}: {reason}", highlight=False, markup=False)


def _shown(value: float | None) -> str:
    return "?" if value is None else f"{value:.2f}"
