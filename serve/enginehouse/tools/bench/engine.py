"""One engine in a process of its own, as a replica has it: answers requests and is timed.

python -m enginehouse.tools.bench.engine FD       takes an Order through FD, then one command after the other
"""

from __future__ import annotations

import os
import sys
import time
from multiprocessing.connection import Connection

from enginehouse.contract.bundle import Bundle
from enginehouse.contract.errors import EnginehouseError
from enginehouse.contract.tensors import Tensors
from enginehouse.engines import Engine, load_engine, worker_process
from enginehouse.tools.bench.limit import WINDOWS, Order, Run


def _main() -> None:
    (descriptor,) = worker_process.begin(sys.argv)
    with Connection(int(descriptor)) as connection:
        try:
            _serve(connection)
        except EnginehouseError as error:
            connection.send(error)
        except EOFError:
            # Nobody asks any more.
            pass
    # Engine libraries have crashed while their threads were taken down.
    os._exit(0)


def _serve(connection: Connection) -> None:
    order: Order = connection.recv()
    bundle = Bundle.open(order.bundle)
    engine = load_engine(order.kind, bundle, bundle.manifest.artifact(order.artifact), threads=order.threads)
    connection.send(engine.precision)
    while True:
        request, seconds = connection.recv()
        connection.send(engine.infer(request) if seconds is None else _run(engine, request, seconds))


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
    _main()
