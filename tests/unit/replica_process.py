"""A pool's replica without Ray, in a process that may crash: prints its address, and then answers until it dies.

`python -m tests.unit.replica_process STORE MODEL...`; with LOADS_FOR_EVER in the environment, an engine is loaded
beside them that never comes up.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace

from ray import serve
from ray.serve._private.config import DeploymentConfig

from enginehouse.contract.config import Catalog, ModelConfig
from enginehouse.contract.tensors import Computed, Tensors
from enginehouse.pools import crashes, isolation
from enginehouse.pools.hosting import HostedModels
from enginehouse.transport.replica_end import Listener


async def answer(store: str, names: Sequence[str]) -> None:
    # The one thing that Serve's batch queue asks of its replica.
    replica = SimpleNamespace(_deployment_config=DeploymentConfig(max_ongoing_requests=256))
    serve.get_replica_context = lambda: replica  # type: ignore[assignment]
    if "LOADS_FOR_EVER" in os.environ:
        threading.Thread(target=load_for_ever, daemon=True).start()
    hosted = HostedModels("ort", ("onnxruntime-cpu",), 1, lambda _: True, unload_after_s=60)
    models = tuple(ModelConfig(name=name, version="1") for name in names)
    hosted.follow(Catalog(store=store, models=models))
    for model in models:
        await hosted.get(model.key, 60)

    async def infer(key: str, requests: Sequence[Tensors], rows: int, budget_s: float) -> Computed:
        return await hosted.models[key].infer(requests, rows, budget_s)

    async def infer_isolated(
        key: str,
        requests: Sequence[Tensors],
        rows: int,
        budget_s: float,
        begun: Callable[[bool], None],
        company: bool,
    ) -> Computed:
        began = time.monotonic()
        loaded = await hosted.get(key, budget_s)
        return await loaded.infer_isolated(requests, rows, budget_s - (time.monotonic() - began), begun, company)

    listener = Listener("ort", infer, 256, infer_isolated)
    print(json.dumps({**await listener.start("127.0.0.1"), "record": crashes.path_here()}), flush=True)
    await asyncio.Event().wait()


def load_for_ever() -> None:
    with isolation.of_this_process.loading(time.monotonic() + 60):
        threading.Event().wait()


if __name__ == "__main__":
    asyncio.run(answer(sys.argv[1], sys.argv[2:]))
