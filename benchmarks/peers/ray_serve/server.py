"""Ray Serve as its documentation shows it: POST the float32 bytes of a row to /.

The pattern of the page on dynamic request batching, a deployment that takes the Starlette request and a `@serve.batch`
method, with a replica per core. Batches wait for nobody; `max_ongoing_requests` is raised over its default of 5, as the
page says, so that batches can fill. Ray's flags are its defaults.
"""

from __future__ import annotations

import os
import signal

import numpy as np
import ray
from peer import HOST, MAX_BATCH, PORT, THREADS, WORKERS, Model
from ray import serve
from starlette.requests import Request
from starlette.responses import Response


@serve.deployment(
    num_replicas=WORKERS,
    max_ongoing_requests=4 * MAX_BATCH,
    ray_actor_options={"num_cpus": THREADS},
    logging_config={"enable_access_log": False},
)
class Served:
    """One engine and its queue."""

    def __init__(self) -> None:
        self.model = Model()

    @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=0)
    async def infer(self, bodies: list[bytes]) -> list[bytes]:
        """The answers' float32 bytes, in the order of the requests' bodies."""
        answers = self.model(np.concatenate([self.model.row(body) for body in bodies]))
        return [answer.tobytes() for answer in answers]

    async def __call__(self, request: Request) -> Response:
        """The answer's float32 bytes."""
        return Response(await self.infer(await request.body()))


if __name__ == "__main__":
    ray.init(address="local", num_cpus=max(WORKERS * THREADS, os.cpu_count() or 1), include_dashboard=False)
    serve.start(http_options={"host": HOST, "port": PORT}, logging_config={"enable_access_log": False})
    serve.run(Served.bind())
    signal.sigwait({signal.SIGINT, signal.SIGTERM})
    ray.shutdown()
