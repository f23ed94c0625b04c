"""Splitting: whether a model answers more when several calls share the cores than when each call has all of them.

One call on all cores is what answers a lone request first. Several calls beside each other answer more requests in all
where threads lose time waiting for each other. Which is true of a model is measured when it is loaded, on this node.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from enginehouse.contract.bundle import Bundle
from enginehouse.contract.errors import EnginehouseError
from enginehouse.contract.latency import AS_GOOD
from enginehouse.contract.manifest import Artifact, EngineKind
from enginehouse.contract.tensors import Tensors
from enginehouse.engines import Engine, load_engine
from enginehouse.engines.usual import UsualRequests
from enginehouse.pools.engine_calls import Split

logger = logging.getLogger("ray.serve")

#: How many calls share the cores, where there are as many: four, and sixteen where each of those still has two cores.
LANES, MORE_LANES = 4, 16
#: How much more a split model has to answer: its second engine takes as much memory as the first.
GAIN = 1.05
#: What share of the best rate is near enough where calls of other models wait for the end of this one.
NEAR = 0.95
#: Largest artifact that is loaded twice, in bytes.
MOST_BYTES = 1 << 30
#: Rounds of measuring; seconds that a measurement takes at least, and seconds above which larger batches are not tried.
ROUNDS, LEAST_S, MOST_S = 3, 0.02, 0.3


def split_of(
    kind: EngineKind, bundle: Bundle, artifact: Artifact, engine: Engine, rows: int, cores: int
) -> Split | None:
    """A second engine that shares `cores` cores among several calls, if that pays; None otherwise.

    `engine` computes calls of `rows` rows with all of them. Takes a few dozen calls of either. None too where a second
    one cannot be loaded or run, as for want of memory: the first answers all the same.
    """
    if cores < 2 or sum(file.bytes for file in artifact.files) > MOST_BYTES:
        return None
    best: _Tried | None = None
    for each in cores_each(cores):
        tried = _tried(kind, bundle, artifact, engine, rows, cores, each)
        if tried is None:
            continue
        if best is not None and tried.gain <= best.gain:
            tried.split.engine.close()
            continue
        if best is not None:
            best.split.engine.close()
        best = tried
    return best.split if best else None


def cores_each(cores: int) -> list[int]:
    """The cores of a call, in each of the ways in which several calls may share `cores` of them."""
    return [max(1, cores // LANES), *([cores // MORE_LANES] if cores >= 2 * MORE_LANES else [])]


class _Tried(NamedTuple):
    """A way to split: `gain` is how many times as many rows it answers as one call at a time."""

    split: Split
    gain: float


def _tried(
    kind: EngineKind, bundle: Bundle, artifact: Artifact, engine: Engine, rows: int, cores: int, each: int
) -> _Tried | None:
    count = cores // each
    try:
        split = load_engine(kind, bundle, artifact, threads=cores, concurrency=count, warm_rows=rows)
    except EnginehouseError as error:
        logger.warning("%s is not loaded a second time: %s", artifact.name, error)
        return None
    try:
        # Requests are let in for what the first one is right for.
        is_alike = split.inputs_only == engine.inputs_only
        gains = _gains(engine, split, bundle, rows, count) if is_alike else {}
    except EnginehouseError as error:
        logger.warning("%s stays whole: %s", artifact.name, error)
        gains = {}
    except BaseException:
        split.close()
        raise
    best = max(gains.values(), default=0.0)
    if best < GAIN:
        split.close()
        return None
    best_rows, short_rows = (
        min(size for size, gain in gains.items() if gain >= share * best) for share in (AS_GOOD, NEAR)
    )
    return _Tried(Split(split, count, best_rows, each, short_rows), best)


def _gains(engine: Engine, split: Engine, bundle: Bundle, rows: int, count: int) -> dict[int, float]:
    """How many times as many rows `count` calls at once answer as one at a time, by the rows of a call."""
    usual = UsualRequests(bundle)
    ways: dict[int, Callable[[], float]] = {0: lambda: _rate(engine, usual.of(rows), rows, 1)}
    rates: dict[int, list[float]] = {0: []}
    for size in bundle.manifest.batch_buckets(rows) if engine.signature.batched else [1]:
        began = time.perf_counter()
        split.infer(usual.of(size))
        if rates.keys() != {0} and time.perf_counter() - began > MOST_S:
            break
        ways[size] = lambda size=size: _rate(split, usual.of(size), size, count)  # type: ignore[misc]
        rates[size] = []
    # In turns, so that whatever else the node does meets all of them.
    for _ in range(ROUNDS):
        for size, measure in ways.items():
            rates[size].append(measure())
    medians = {size: statistics.median(measured) for size, measured in rates.items()}
    whole = medians.pop(0)
    return {size: rate / whole for size, rate in medians.items()}


def _rate(engine: Engine, inputs: Tensors, rows: int, count: int) -> float:
    """Rows a second of `count` calls at once, each of the `rows` rows of `inputs`."""

    def work(until: float) -> int:
        calls = 0
        while not calls or time.perf_counter() < until:
            engine.infer(inputs)
            calls += 1
        return calls

    began = time.perf_counter()
    if count == 1:
        calls: Sequence[int] = [work(began + LEAST_S)]
    else:
        with ThreadPoolExecutor(count) as threads:
            calls = list(threads.map(work, [began + LEAST_S] * count))
    return sum(calls) * rows / (time.perf_counter() - began)
