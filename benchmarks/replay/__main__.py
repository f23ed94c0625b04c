"""The command.

python -m benchmarks.replay [--nodes 200 --models 1000 --seconds 60 --load 0.5 --routers 2 --seed 0]
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks.replay import fleet, report, traces
from benchmarks.replay.figures import figure
from benchmarks.replay.replay import policies, replay
from benchmarks.replay.router import NAME
from enginehouse.contract.config import RouterConfig

RESULTS = Path(__file__).parent.parent / "results"
#: Wide enough for the table, also where the output goes to a file.
_console = Console(highlight=False, soft_wrap=True, width=max(160, Console().width))


def main(
    nodes: Annotated[int, typer.Option(min=2, help="Nodes; one in five has a GPU.")] = 200,
    models: Annotated[int, typer.Option(min=1, help="Models.")] = 1000,
    seconds: Annotated[float, typer.Option(min=10, help="Seconds of each trace.")] = 60,
    load: Annotated[float, typer.Option(min=0.01, help="Mean load over what full batches could do.")] = traces.LOAD,
    routers: Annotated[int, typer.Option(min=1, help="Routers of enginehouse.")] = RouterConfig().num_replicas,
    seed: Annotated[int, typer.Option(help="The same seed gives the same figures.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for the figures as JSON lines and the plot.")] = RESULTS,
) -> None:
    """Replay four traces under enginehouse's policy and three others, and print what came of it."""
    made = fleet.make(nodes, models, seed)
    figures = [
        figure(trace, name, replay(made, trace, maker, seed))
        for trace in traces.make(made, seconds, seed, load)
        for name, maker in policies(routers).items()
    ]
    run = {"nodes": nodes, "models": models, "seconds": seconds, "load": load, "routers": routers, "seed": seed}
    title = ", ".join(f"{name} {value:g}" for name, value in run.items())
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"replay-{nodes}x{models}-load{load:g}-routers{routers}-seed{seed}"
    report.write(path.with_name(f"{path.name}.jsonl"), figures, run)
    drawn = report.plot(path.with_name(f"{path.name}.svg"), figures, title)
    _console.print(report.table(figures, title))
    for line in report.verdicts(figures):
        _console.print(f"{NAME}, {line}")
    _console.print(f"figures: {path}.jsonl" + (f", plot: {path}.svg" if drawn else "; no plot: matplotlib is missing"))


if __name__ == "__main__":
    typer.run(main)
