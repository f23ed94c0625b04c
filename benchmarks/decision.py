"""What a decision costs a router: which backend answers a request, and which of its replicas. Microseconds.

    python -m benchmarks.decision [--output FILE]

The code of a router, over real connections to replicas that are all in this process; only what Serve would tell of them
is told here. `idle`: nobody has anything to do. `busy`: every replica has a call, and eight more requests wait for each
backend. What a router knows of replicas it looks at anew once in 5 ms for each model that is asked for.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import statistics
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from enginehouse.contract.config import APP_NAME, USUAL, ModelConfig, PoolConfig
from enginehouse.contract.latency import LatencyPoint, LatencyTable
from enginehouse.contract.manifest import FORMAT_OF, Artifact, EngineKind, Manifest, SignatureRecord, TensorRecord
from enginehouse.contract.tensors import Computed, Tensors, Timing
from enginehouse.pools.hosting import HostedModels
from enginehouse.pools.report import ModelReport
from enginehouse.routing import replicas as known_replicas
from enginehouse.routing.backends import Backend, Backends, Sender
from enginehouse.routing.policy import BackendState, Demand, FastestInTime
from enginehouse.routing.pool_call import PoolCall, freest
from enginehouse.routing.view import ModelVersion, View
from enginehouse.transport.replica_end import Listener

ENGINES: Sequence[EngineKind] = ("onnxruntime-cpu", "openvino-cpu", "onnxruntime-cuda", "tensorrt")
#: Replicas of each pool, and whether a router hosts the model as well.
CASES: Mapping[str, tuple[Sequence[int], bool]] = {
    "1 backend": ([1], False),
    "resident and 2 pools": ([1, 1], True),
    "4 backends": ([1, 1, 1, 1], False),
    "64 replicas of 1 pool": ([64], False),
    "64 replicas of 4 pools": ([16, 16, 16, 16], False),
}
WAITING = 8
#: The machine may be slow for some seconds, hence the best of several rounds over all cases.
LOOPS, WINDOWS, ROUNDS = 100, 5, 4
X: Tensors = {"x": np.zeros((1, 4), np.float32)}
MODEL = ModelConfig(name="m", version="1")
console = Console(highlight=False)


@dataclass(frozen=True)
class Cost:
    """Microseconds: to rank, to look at all replicas anew before that, and to choose one of the best backend's."""

    case: str
    load: str
    rank: float
    anew: float
    replica: float

    @property
    def decision(self) -> float:
        """What a request costs that leaves at once."""
        return self.rank + self.replica


def served(resident: bool) -> ModelVersion:
    """A model that has been measured on every engine, each a little slower than the one before."""
    tensor = TensorRecord(name="x", datatype="FP32", shape=(-1, 4))
    tables = [
        LatencyTable(
            engine=engine,
            artifact=FORMAT_OF[engine],
            threads=1,
            host="here",
            points=tuple(
                LatencyPoint(rows=rows, median_ms=ms, p90_ms=ms, min_ms=ms, count=1)
                for rows, ms in ((1, 2.0 + place), (2, 3.0 + place), (4, 5.0 + place), (8, 9.0 + place))
            ),
        )
        for place, engine in enumerate(ENGINES)
    ]
    manifest = Manifest(
        name=MODEL.name,
        version=MODEL.version,
        created="2026-01-01T00:00:00Z",
        source="benchmarks",
        signature=SignatureRecord(inputs=(tensor,), outputs=(tensor,)),
        max_batch=8,
        artifacts=tuple(
            Artifact(name=name, format=name, precision="fp32", status="ready")
            for name in ("onnx", "openvino", "tensorrt")
        ),
        latency=tuple(tables),
    )
    return ModelVersion(MODEL.model_copy(update={"resident": resident}), manifest, manifest.signature.signature())


def report(engine: EngineKind) -> ModelReport:
    """What a replica says that has the model."""
    return ModelReport(
        state="ready", reason="", engine=engine, artifact=FORMAT_OF[engine], precision="fp32", measured=[]
    )


@contextlib.asynccontextmanager
async def replicas(counts: Sequence[int], hold: asyncio.Event) -> AsyncIterator[None]:
    """So many replicas of each pool, connected, on nodes of their own; they answer when `hold` is set."""

    async def infer(model: str, requests: Sequence[Tensors], rows: int, budget_s: float) -> Computed:
        await hold.wait()
        return {"x": np.concatenate([request["x"] for request in requests])}, Timing(0.0, 2.0, rows)

    listeners = []
    for engine, count in zip(ENGINES, counts, strict=False):
        # Serve would list them, in a cluster.
        listed = {}
        for number in range(count):
            listener = Listener(engine, infer, max_calls=100)
            address = await listener.start("127.0.0.1")
            listeners.append(listener)
            listed[f"{engine}-{number}"] = {
                "models": {MODEL.id: report(engine)},
                "address": address,
                "node": f"node-{number}",
            }
        known_replicas.register(APP_NAME, engine).update(listed)
    known_replicas.connect()
    await asyncio.gather(*known_replicas._connecting.values())
    try:
        yield
    finally:
        hold.set()
        for listener in listeners:
            await listener.stop(1)
        known_replicas._pools.clear()


async def measure(case: str) -> list[Cost]:
    """One case, first idle and then busy."""
    counts, is_resident = CASES[case]
    model = served(is_resident)
    residents = HostedModels("a router", ENGINES[:1], 1, lambda _: True, 10, router=True) if is_resident else None
    if residents:
        residents.reports[MODEL.id] = report(ENGINES[0])
    pools = {engine: PoolConfig(engine=engine) for engine in ENGINES[: len(counts)]}
    calls: dict[str, PoolCall] = {}

    def sender(backend: Backend) -> Sender:
        pool = backend.state.pool
        calls[pool] = PoolCall(pool, MODEL.id, backend.call_ms, backend.take_demand_ms)
        return calls[pool]

    hold = asyncio.Event()
    async with replicas(counts, hold):
        reports, backends, policy = View(pools, residents, "node-0"), Backends(sender, 2), FastestInTime()
        demand = Demand(1, budget_ms=30_000.0)

        def rank(live: Sequence[BackendState]) -> None:
            policy.rank(backends.states(model, live, USUAL), demand)

        def look() -> list[BackendState]:
            return reports.live(model, fresh=True)

        def choose() -> None:
            now = time.monotonic()
            freest(calls[ENGINES[0]].free(now), MODEL.id, now)

        def cost(load: str) -> Cost:
            live = look()
            rank(live)
            return Cost(case, load, timed(lambda: rank(live)), timed(lambda: rank(look())), timed(choose))

        found = [cost("idle")]
        waiting = []
        for state in reports.live(model):
            if not state.resident:
                infer = functools.partial(backends.get(model, state).infer, X, 1, time.monotonic() + 60, USUAL)
                waiting += [asyncio.create_task(infer()) for _ in range(state.replicas + WAITING)]
        await asyncio.sleep(0.1)
        # The event loop stands still from here on, so that nothing changes.
        found.append(cost("busy"))
        hold.set()
        await asyncio.gather(*waiting)
    return found


def timed(work: Callable[[], object]) -> float:
    """Median microseconds of several windows."""
    windows = []
    for _ in range(WINDOWS):
        began = time.perf_counter()
        for _ in range(LOOPS):
            work()
        windows.append((time.perf_counter() - began) / LOOPS * 1e6)
    return round(statistics.median(windows), 2)


def main(
    output: Annotated[Path | None, typer.Option(help="Append the figures to this JSON lines file.")] = None,
) -> None:
    """Print what decisions cost."""
    rounds = [[cost for case in CASES for cost in asyncio.run(measure(case))] for _ in range(ROUNDS)]
    found = [
        Cost(
            one[0].case,
            one[0].load,
            rank=min(cost.rank for cost in one),
            anew=min(cost.anew for cost in one),
            replica=min(cost.replica for cost in one),
        )
        for one in zip(*rounds, strict=True)
    ]
    table = Table(title="microseconds of a decision", title_justify="left")
    for column in ("case", "load"):
        table.add_column(column)
    for column in ("rank", "replica", "decision", "rank, looked anew"):
        table.add_column(column, justify="right")
    for cost in found:
        figures = cost.rank, cost.replica, cost.decision, cost.anew
        table.add_row(cost.case, cost.load, *(f"{figure:.1f}" for figure in figures))
    console.print(table)
    if output is not None:
        with output.open("a") as file:
            file.writelines(json.dumps(asdict(cost) | {"decision": round(cost.decision, 2)}) + "\n" for cost in found)


if __name__ == "__main__":
    typer.run(main)
