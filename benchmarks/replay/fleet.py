"""The fleet: nodes of two kinds, models with their latency tables, and which models are where.

Every number is from a source named beside it, or an assumption that says so; none was changed after a result was seen.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from enginehouse.contract.latency import LatencyPoint, LatencyTable
from enginehouse.contract.manifest import ACCELERATOR_OF, Accelerator, EngineKind
from enginehouse.routing.policy import HOP_MS

#: US dollars an hour: AWS c5.4xlarge (8 cores) and g5.xlarge (one A10G), us-east-1, on demand.
PRICE: Mapping[Accelerator, float] = {"cpu": 0.68, "gpu": 1.006}
#: The engines of a node. Both of a CPU node compute on the same cores, as with the default pools.
ENGINES: Mapping[Accelerator, tuple[EngineKind, ...]] = {
    "gpu": ("tensorrt",),
    "cpu": ("openvino-cpu", "onnxruntime-cpu"),
}
#: One node in so many has a GPU: assumed.
GPU_EVERY = 5
#: Nodes of a cell on average. A cell hosts its models on all of its nodes: 50 of 1000, which fit a GPU's 24 GB.
CELL_NODES = 10
#: Popularity falls with the rank to this power; page requests were found at 0.64 to 0.83 (Breslau et al. 1999).
ZIPF = 0.8
#: Milliseconds of a row on a CPU node, log-normal, from small vision models to large encoders: MobileNetV2 takes 0.5
#: and ResNet-18 2.3 (benchmarks/README.md, over eight cores), ResNet-50 by its operations 5. Assumed.
ROW_MS, ROW_SIGMA, ROW_MOST_MS = 30.0, 1.2, 400.0
#: What a CPU call costs beside its rows, as a share of one: ResNet-18 gains 6 % from 2 to 8 rows (`AS_GOOD`).
CPU_CALL_ROWS, CPU_CALL_MS = 0.15, 0.1
#: ONNX Runtime's time over OpenVINO's, log-normal: it is the faster one for one model in six. Assumed.
ONNX_OVER_OPENVINO, ONNX_SIGMA = 1.2, 0.2
#: A GPU computes so many rows while a CPU node computes one, log-normal: ResNet-50 in fp16 takes 0.43 ms a row on an
#: A40, and 2.7 (T4) to 3.7 (A40) rows' time a call, with Triton's (NVIDIA DeepLearningExamples, triton/resnet50).
GPU_ROWS, GPU_SIGMA = 10.0, 0.4
GPU_CALL_ROWS, GPU_CALL_MS = 2.5, 0.3
#: How far the machines are off the table, per engine and again per model and engine, log-normal: tables were made on
#: another generation of processors, say. Assumed; no policy knows it beforehand.
ENGINE_SIGMA, MODEL_SIGMA = 0.2, 0.15
#: Rows of the tables, of which the last is the most that an engine takes.
TABLE_ROWS = (1, 2, 4, 8, 16, 32)
#: A deadline is so many times the model's own time, and at least so many seconds: assumed, what a person just notices.
#: The time is that of a GPU for every other model, and that of a CPU for those that nobody would buy a GPU for.
SLO_TIMES, SLO_LEAST_S = 5.0, 0.1


@dataclass(frozen=True, eq=False, slots=True)
class Model:
    """One model: its share of the requests, what the tables say, and what is true.

    `batch_rows` is how many rows travel together per engine, `truth` the real time over that of the table, and
    `slo_times` how often the table time of `slo_engine` fits into a deadline.
    """

    name: str
    cell: int
    popularity: float
    tables: Mapping[EngineKind, LatencyTable]
    batch_rows: Mapping[EngineKind, int]
    truth: Mapping[EngineKind, float]
    slo_engine: EngineKind
    slo_times: float = SLO_TIMES

    def budget_s(self, rows: int) -> float:
        """Seconds from arrival to the deadline of a request of so many rows."""
        return max(SLO_LEAST_S, self.slo_times * (self.tables[self.slo_engine].predict_ms(rows) + HOP_MS) / 1e3)

    def row_ms(self, engine: EngineKind) -> float:
        """Table time of a row in a batch that is worth it."""
        rows = self.batch_rows[engine]
        return self.tables[engine].predict_ms(rows) / rows

    def engines(self) -> list[EngineKind]:
        """The fastest engine of each kind of node that has one, the fastest of all first, by the tables."""
        kinds = ([engine for engine in kind if engine in self.tables] for kind in ENGINES.values())
        return sorted((min(kind, key=self.row_ms) for kind in kinds if kind), key=self.row_ms)


@dataclass(frozen=True, slots=True)
class Node:
    """A machine of one kind, which hosts the models of its cell."""

    name: str
    accelerator: Accelerator
    cell: int


@dataclass(frozen=True, slots=True)
class Fleet:
    """Models and nodes; a pool is one engine kind in one cell."""

    models: Sequence[Model]
    nodes: Sequence[Node]

    @property
    def rows_per_s(self) -> float:
        """Rows a second that all nodes compute in full batches of the usual mix, as the tables have it."""
        rate = 0.0
        for accelerator in ENGINES:
            count = sum(node.accelerator == accelerator for node in self.nodes)
            if not count:
                continue
            row_ms = sum(
                model.popularity
                * min(model.row_ms(engine) for engine in ENGINES[accelerator] if engine in model.tables)
                for model in self.models
            )
            rate += count / row_ms * 1e3
        return rate


def make(nodes: int, models: int, seed: int) -> Fleet:
    """A fleet of so many nodes and models.

    Models are dealt out to cells of about equal expected work, and nodes to cells by that work, as somebody would who
    knows the popularity; at least one node of each kind for a cell.
    """
    random = np.random.default_rng([seed, 0])
    cells = max(1, nodes // CELL_NODES)
    popularity = 1 / np.arange(1, models + 1) ** ZIPF
    popularity /= popularity.sum()
    engine_truth = {engine: random.lognormal(0, ENGINE_SIGMA) for kind in ENGINES.values() for engine in kind}
    tables = [_tables(random) for _ in range(models)]
    work = [share * own["openvino-cpu"].predict_ms(1) for share, own in zip(popularity, tables, strict=True)]
    cell_of, load = _dealt(work, cells)
    made = [
        Model(
            f"model-{index:04}",
            cell_of[index],
            float(popularity[index]),
            own,
            {engine: table.efficient_rows(TABLE_ROWS[-1]) for engine, table in own.items()},
            {engine: float(truth * random.lognormal(0, MODEL_SIGMA)) for engine, truth in engine_truth.items()},
            "openvino-cpu" if random.random() < 0.5 else "tensorrt",
        )
        for index, own in enumerate(tables)
    ]
    gpus = max(cells, nodes // GPU_EVERY)
    counts: Mapping[Accelerator, int] = {"gpu": gpus, "cpu": max(cells, nodes - gpus)}
    return Fleet(
        made,
        [
            Node(f"{accelerator}-{cell:02}-{number:02}", accelerator, cell)
            for accelerator, count in counts.items()
            for cell, here in enumerate(_shared(count, load))
            for number in range(here)
        ],
    )


def _tables(random: np.random.Generator) -> dict[EngineKind, LatencyTable]:
    row_ms = min(ROW_MOST_MS, ROW_MS * random.lognormal(0, ROW_SIGMA))
    onnx = ONNX_OVER_OPENVINO * random.lognormal(0, ONNX_SIGMA)
    gpu_row_ms = row_ms / (GPU_ROWS * random.lognormal(0, GPU_SIGMA))
    call_ms = CPU_CALL_MS + CPU_CALL_ROWS * row_ms
    return {
        "tensorrt": table("tensorrt", GPU_CALL_MS + GPU_CALL_ROWS * gpu_row_ms, gpu_row_ms),
        "openvino-cpu": table("openvino-cpu", call_ms, row_ms),
        "onnxruntime-cpu": table("onnxruntime-cpu", call_ms * onnx, row_ms * onnx),
    }


def table(engine: EngineKind, call_ms: float, row_ms: float) -> LatencyTable:
    """The table of an engine whose calls take `call_ms` and `row_ms` for each row."""
    times = [(rows, call_ms + row_ms * rows) for rows in TABLE_ROWS]
    points = tuple(LatencyPoint(rows=rows, median_ms=ms, p90_ms=ms, min_ms=ms, count=1) for rows, ms in times)
    return LatencyTable(engine=engine, artifact=ACCELERATOR_OF[engine], threads=0, host="assumed", points=points)


def _dealt(work: Sequence[float], cells: int) -> tuple[list[int], list[float]]:
    """The cell of each, heaviest first to the one with the least so far, and what each cell has."""
    lightest = [(0.0, cell) for cell in range(cells)]
    cell_of = [0] * len(work)
    for index in sorted(range(len(work)), key=lambda index: -work[index]):
        load, cell = heapq.heappop(lightest)
        cell_of[index] = cell
        heapq.heappush(lightest, (load + work[index], cell))
    loads = dict((cell, load) for load, cell in lightest)
    return cell_of, [loads[cell] for cell in range(cells)]


def _shared(count: int, load: Sequence[float]) -> list[int]:
    """`count` in proportion to the load, at least one each; always to the one that has the most load for each."""
    shares = [1] * len(load)
    for _ in range(count - len(load)):
        most = max(range(len(load)), key=lambda cell: load[cell] / shares[cell])
        shares[most] += 1
    return shares
