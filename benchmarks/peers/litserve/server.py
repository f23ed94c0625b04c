"""LitServe: POST the float32 bytes of a row, as application/octet-stream, to /predict.

Tuned as its pages on workers and speed say: an engine process per core (`workers_per_device`), as many processes that
read HTTP, and bytes both ways. Batches and `fast_queue` (ZeroMQ) stay off: on two cores both took more CPU time for an
answer of MobileNetV2 (15 ms without, 17 ms with batches of 8, 16 ms with ZeroMQ) and hardly less of the tiny network.
"""

from typing import Annotated

import litserve
import numpy as np
from fastapi import Body, Response
from peer import HOST, PORT, WORKERS, Model


class Served(litserve.LitAPI):
    """One engine process."""

    def setup(self, device: str) -> None:
        """Load the engine."""
        self.model = Model()

    def decode_request(self, request: Annotated[bytes, Body()]) -> np.ndarray:
        """A row. LitServe gives the annotation to its endpoint, so that FastAPI leaves the body as it is."""
        return self.model.row(request)

    def predict(self, x: np.ndarray) -> np.ndarray:
        """The answer, [1, ...]."""
        return self.model(x)

    def encode_response(self, output: np.ndarray) -> Response:
        """The answer's float32 bytes."""
        return Response(output.tobytes())


if __name__ == "__main__":
    server = litserve.LitServer(Served(), accelerator="cpu", workers_per_device=WORKERS)
    server.run(
        host=HOST,
        port=PORT,
        num_api_servers=WORKERS,
        log_level="warning",
        access_log=False,
        generate_client_file=False,
    )
