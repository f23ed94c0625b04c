"""`enginehouse doctor`: what is wrong with this machine, and what to do about each finding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal, TypeAlias

import orjson
import typer
from rich.table import Table
from rich.text import Text

from enginehouse.cli.console import out
from enginehouse.doctor import probe_node
from enginehouse.hardware import ENGINE_DISTRIBUTIONS

Status: TypeAlias = Literal["ok", "warn", "fail"]
_COLOUR: Mapping[Status, str] = {"ok": "green", "warn": "yellow", "fail": "red"}
_GPU_ENGINES = frozenset({"onnxruntime-gpu", "tensorrt", "tensorrt-rtx"})
_SIDE_PORT_SETTING = {8404: "RAY_SERVE_HAPROXY_STATS_PORT", 9101: "RAY_SERVE_HAPROXY_METRICS_PORT"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at. `remedy` says what to do and is empty when all is well."""

    area: str
    status: Status
    text: str
    remedy: str = ""


def command(json: Annotated[bool, typer.Option(help="Print JSON.")] = False) -> None:
    """Show engine libraries, hardware, labels, serving flags, ports and open addresses; exit 1 if something fails."""
    found = findings()
    if json:
        typer.echo(orjson.dumps([asdict(finding) for finding in found], option=orjson.OPT_INDENT_2).decode())
    else:
        show(found)
    if any(finding.status == "fail" for finding in found):
        raise typer.Exit(1)


def show(found: Sequence[Finding]) -> None:
    """Print findings as a table, each with its remedy under it."""
    table = Table(show_lines=True)
    for column in ("area", "", "finding"):
        table.add_column(column, overflow="fold")
    for finding in found:
        # Text and not markup: names of actors hold colons and brackets.
        told = Text(finding.text)
        if finding.remedy:
            told.append(f"\n-> {finding.remedy}", style="bold")
        table.add_row(finding.area, Text(finding.status, style=_COLOUR[finding.status]), told)
    out.print(table, highlight=False)


def findings(node: Mapping[str, Any] | None = None) -> list[Finding]:
    """Judge what `probe_node` found; without `node`, on this machine."""
    node = probe_node() if node is None else node
    return [
        *_engines(node),
        *_hardware(node),
        *[_flags(raylet) for raylet in node["flags"]],
        *([] if node["flags"] else [Finding("flags", "ok", "no Ray runs here; `enginehouse serve` sets them itself")]),
        *[_port(port) for port in node["ports"]],
        *_open_addresses(node["listening"]),
    ]


def _engines(node: Mapping[str, Any]) -> list[Finding]:
    versions: Mapping[str, str] = node["engines"]
    found = [Finding("engines", "ok", f"{name} {versions[name]}") for name in ENGINE_DISTRIBUTIONS if name in versions]
    if not versions.keys() - {"cuda-bindings"}:
        remedy = "install enginehouse[cpu], or on a GPU node enginehouse[gpu] and enginehouse[trt]"
        found.append(Finding("engines", "fail", "no engine library is installed", remedy))
    if node["conflict"]:
        text, _, remedy = node["conflict"].partition("; ")
        found.append(Finding("engines", "fail", text, remedy))
    return found


def _hardware(node: Mapping[str, Any]) -> list[Finding]:
    cpu, gpus = node["cpu"], node["gpus"]
    flags = ", ".join(cpu["flags"]) or "no vector extension that engines use"
    cores = f"{cpu['cores']} physical cores and {cpu['threads']} threads usable"
    found = [Finding("cpu", "ok", f"{cpu['model']}: {cores}; {flags}")]
    for gpu in gpus["devices"]:
        memory = f"{gpu['memory_bytes'] / 2**30:.0f} GiB"
        found.append(Finding("gpu", "ok", f"{gpu['name']}: compute capability {gpu['compute_capability']}, {memory}"))
    if gpus["devices"] and not node["engines"].keys() & _GPU_ENGINES:
        remedy = "install enginehouse[gpu] (without [cpu]) or enginehouse[trt]"
        found.append(Finding("gpu", "warn", "there is a GPU, but no engine library that uses it", remedy))
    if not gpus["devices"]:
        remedy = "" if "no NVIDIA driver" in gpus["reason"] else "see what `nvidia-smi` says"
        found.append(Finding("gpu", "warn" if remedy else "ok", gpus["reason"], remedy))
    labels = ", ".join(f"{name}={value}" for name, value in node["labels"].items())
    found.append(Finding("labels", "ok", f"this node should carry {labels}"))
    return found


def _flags(raylet: Mapping[str, Any]) -> Finding:
    who = f"raylet {raylet['pid']}"
    if raylet["unreadable"]:
        remedy = "run the doctor as the user who started Ray"
        return Finding("flags", "warn", f"{who}: its environment cannot be read ({raylet['unreadable']})", remedy)
    if raylet["missing"]:
        remedy = f"restart Ray on this node with {' '.join(raylet['missing'])}"
        return Finding("flags", "warn", f"{who} was started without all serving flags", remedy)
    return Finding("flags", "ok", f"{who} has all serving flags")


def _port(port: Mapping[str, Any]) -> Finding:
    number = port["port"]
    if port["free"]:
        return Finding("ports", "ok", f"{number} is free")
    if port["by"]:
        return Finding("ports", "ok", f"{number} is used by {port['by']}")
    setting = _SIDE_PORT_SETTING.get(number)
    remedy = f"start every node with another {setting}" if setting else "serve on another with --port"
    return Finding("ports", "warn", f"{number} is taken by a process that is not Ray's", remedy)


def _open_addresses(listening: Sequence[Mapping[str, Any]]) -> list[Finding]:
    if not listening:
        return [Finding("network", "ok", "no process of Ray, Serve or HAProxy listens here")]
    is_open = [entry for entry in listening if entry["open"]]
    inside = [entry for entry in listening if not entry["open"]]
    found = []
    if inside:
        found.append(Finding("network", "ok", f"only this machine can reach\n{_by_process(inside)}"))
    if is_open:
        remedy = "let only cluster nodes through the firewall: calls between them carry pickled Python objects"
        found.append(Finding("network", "warn", f"other machines can reach\n{_by_process(is_open)}", remedy))
    return found


def _by_process(listening: Sequence[Mapping[str, Any]]) -> str:
    """One line for each process with its addresses."""
    lines: dict[str, list[str]] = {}
    for entry in listening:
        address = f"[{entry['address']}]" if ":" in entry["address"] else entry["address"]
        lines.setdefault(f"{entry['process']} ({entry['pid']})", []).append(f"{address}:{entry['port']}")
    return "\n".join(f"{process}: {', '.join(addresses)}" for process, addresses in sorted(lines.items()))
