"""`enginehouse doctor`: what is wrong with this machine or a whole cluster, and what to do about each finding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Annotated

import orjson
import typer
from rich import box
from rich.table import Table
from rich.text import Text

from enginehouse.tools.cli.cluster import on_cluster
from enginehouse.tools.cli.console import out
from enginehouse.tools.doctor import Finding, judge_cluster, judge_member, judge_node, probe_node
from enginehouse.tools.doctor.finding import Status

_COLOUR: Mapping[Status, str] = {"ok": "green", "warn": "yellow", "fail": "red"}

#: Findings by where they hold: a node, or the whole cluster.
Report = dict[str, list[Finding]]


def command(
    address: Annotated[
        str, typer.Option(help="A running cluster, `auto` or host:port: all of its nodes. Default: this machine alone.")
    ] = "",
    json: Annotated[bool, typer.Option(help="Print JSON.")] = False,
) -> None:
    """Show engine libraries, hardware, labels, flags, ports, open addresses and files; exit 1 if something fails."""
    report = _of_cluster(address) if address else _of_this_machine()
    if json:
        flat = [{"where": where, **asdict(finding)} for where, found in report.items() for finding in found]
        typer.echo(orjson.dumps(flat, option=orjson.OPT_INDENT_2).decode())
    else:
        for where, found in report.items():
            show(where, found)
    if any(finding.status == "fail" for found in report.values() for finding in found):
        raise typer.Exit(1)


def show(where: str, found: Sequence[Finding]) -> None:
    """Print findings as a table, each with its remedy under it."""
    out.print(Text(where, style="bold"))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for column in ("area", "", "finding"):
        table.add_column(column, overflow="fold")
    area = ""
    for finding in found:
        # Text and not markup: names of actors hold colons and brackets.
        told = Text(finding.text)
        if finding.remedy:
            told.append(f"\n-> {finding.remedy}", style="bold")
        table.add_row("" if finding.area == area else finding.area, Text(finding.status, _COLOUR[finding.status]), told)
        area = finding.area
    out.print(table, highlight=False)


def _of_this_machine() -> Report:
    probe = probe_node()
    return {str(probe["host"]): judge_node(probe)}


def _of_cluster(address: str) -> Report:
    with on_cluster(address):
        from enginehouse.tools.cli.survey import survey

        seen = survey()
    report = {"the cluster": judge_cluster(seen)}
    for member in seen.members:
        role = "head" if member.head else "worker"
        report[f"{role} {member.name}"] = judge_member(member)
    return report
