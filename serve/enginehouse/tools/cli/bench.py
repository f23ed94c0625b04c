"""`enginehouse bench`: how fast a served model answers, measured so that the figures can be believed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, get_args

import typer

from enginehouse.contract.errors import ConfigError
from enginehouse.contract.store import Store
from enginehouse.tools.bench import arrivals, live, load, plot, report, samples
from enginehouse.tools.bench.figure import Scenario
from enginehouse.tools.bench.run import run
from enginehouse.tools.bench.scenarios import Plan
from enginehouse.tools.cli.console import out, say
from enginehouse.tools.cli.output_file import check_output
from enginehouse.tools.cli.status import Address

_SCENARIOS: tuple[Scenario, ...] = get_args(Scenario)


def bench(
    model: Annotated[str, typer.Argument(help="Model, `name` or `name@version`.")],
    samples_file: Annotated[
        Path | None, typer.Option("--samples", help=".npz of rows by input name; default: random values.")
    ] = None,
    trace: Annotated[
        Path | None, typer.Option(help="Arrivals to replay as the server scenario: t,rows as CSV, or JSON lines.")
    ] = None,
    url: Annotated[str, typer.Option(help="Where it is served; default: where the cluster listens.")] = "",
    address: Address = "auto",
    rows: Annotated[int, typer.Option(min=1, help="Rows of a request (offline: as many as a batch may have).")] = 1,
    seconds: Annotated[float, typer.Option(min=1, help="Seconds for each figure.")] = 10,
    p99_ms: Annotated[float | None, typer.Option(min=0.01, help="What the p99 of the server scenario may be.")] = None,
    chosen: Annotated[str, typer.Option("--scenarios", help="Which ones, by comma.")] = ",".join(_SCENARIOS),
    connections: Annotated[str, typer.Option(help="Connections of the closed loops, by comma.")] = "1,8,32,64",
    json: Annotated[Path | None, typer.Option(help="Append a line of JSON for each figure to this file.")] = None,
    plot_file: Annotated[Path | None, typer.Option("--plot", help="Plot the closed loops, as .svg or .png.")] = None,
    json_body: Annotated[bool, typer.Option(help="Send and receive JSON instead of binary tensors.")] = False,
) -> None:
    """Measure MODEL as it is served now, compare answers with the engine's own, and say which figures count.

    A wrong answer ends the run with exit code 1.
    """
    plan = Plan(
        scenarios=_scenarios(chosen),
        connections=_connections(connections),
        rows=rows,
        seconds=seconds,
        p99_ms=p99_ms,
        trace=arrivals.read_trace(trace) if trace else None,
    )
    if plot_file is not None:
        plot.check(plot_file)
    for path, option in ((json, "--json"), (plot_file, "--plot")):
        if path is not None:
            check_output(path, option)
    if not load.has_wrk():
        say(load.NO_WRK)
    name, _, version = model.partition("@")
    target = live.look(address, name, version or None)
    if not target.processes:
        say("the cluster is not on this host: its CPU time is not known, and the limit is that of this machine")
    artifacts = [backend.artifact for backend in target.backends.values()]
    bundle = Store(target.store).open(name, target.version, artifacts)
    inputs = samples.read(samples_file, bundle.manifest) if samples_file else samples.synthetic(bundle.manifest)
    endpoint = f"/v2/models/{name}" + (f"/versions/{version}" if version else "") + "/infer"
    served_at = (url or target.url).rstrip("/") + endpoint
    figures, context = run(served_at, target, bundle, inputs, plan, as_json=json_body, tell=say)
    out.print(report.table(figures, context))
    for line in report.faults(figures, context):
        out.print(f"  {line}", highlight=False, markup=False, soft_wrap=True)
    if json is not None:
        report.append_lines(json, figures, context)
    if plot_file is not None:
        plot.plot(plot_file, figures, context)


def _scenarios(chosen: str) -> tuple[Scenario, ...]:
    wanted = {name.strip() for name in chosen.split(",") if name.strip()}
    if unknown := sorted(wanted - set(_SCENARIOS)):
        raise ConfigError(f"--scenarios: no scenario {', '.join(unknown)}; there are {', '.join(_SCENARIOS)}")
    return tuple(name for name in _SCENARIOS if name in wanted)


def _connections(text: str) -> tuple[int, ...]:
    try:
        found = tuple(int(number) for number in text.split(",") if number.strip())
    except ValueError:
        found = ()
    if not found or min(found) < 1:
        raise ConfigError(f"--connections {text!r}: give numbers by comma, such as 1,8,32")
    return found
