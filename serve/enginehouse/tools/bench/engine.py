"""One engine in a process of its own, as a replica has it: answers requests and is timed.

python -m enginehouse.tools.bench.engine ...       takes an Order, then one command after the other
"""

from __future__ import annotations

import time

from enginehouse.contract.bundle import Bundle
from enginehouse.contract.tensors import Tensors
from enginehouse.engines import Engine, load_engine
from enginehouse.engines.worker_process import Parent, serve
from enginehouse.tools.bench.limit import WINDOWS, Order, Run


def _work(parent: Parent) -> None:
    order: Order = parent.receive()
    bundle = Bundle.open(order.bundle)
    engine = load_engine(order.kind, bundle, bundle.manifest.artifact(order.artifact), threads=order.threads)
    parent.send(engine.precision)
    while True:
        request, seconds = parent.receive()
        parent.send(engine.infer(request) if seconds is None else _run(engine, request, seconds))


def _run(engine: Engine, request: Tensors, seconds: float) -> Run:
    engine.infer(request)
    took: list[float] = []
    cpu_before = time.process_time()
    began = now = time.perf_counter()
    while now - began < seconds or len(took) < WINDOWS:
        start = now
        engine.infer(request)
        now = time.perf_counter()
        took.append(now - start)
    parts = (took[part * len(took) // WINDOWS : (part + 1) * len(took) // WINDOWS] for part in range(WINDOWS))
    return Run(
        calls=len(took),
        seconds=now - began,
        cpu_s=time.process_time() - cpu_before,
        windows=tuple(len(part) / sum(part) for part in parts),
    )


if __name__ == "__main__":
    serve(_work)
