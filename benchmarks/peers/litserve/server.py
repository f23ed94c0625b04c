"""LitServe: POST the float32 bytes of a row, as application/octet-stream, to /predict.

Tuned as its pages on workers, batching and speed say: an engine process per core (`workers_per_device`), `fast_queue`
(ZeroMQ between the processes), requests and answers as bytes.
"""

import os
from typing import Annotated

import litserve
import numpy as np
from fastapi import Body, Response
from peer import HOST, MAX_BATCH, PORT, WORKERS, Model


class Served(litserve.LitAPI):
    """One engine process."""

    def setup(self, device: str) -> None:
        """Load the engine."""
        self.model = Model()

    def decode_request(self, request: Annotated[bytes, Body()]) -> np.ndarray:
        """LitServe takes the annotation for its endpoint's, so that FastAPI passes the body through as it is."""
        return self.model.row(request)

    def batch(self, inputs: list[np.ndarray]) -> np.ndarray:
        """One array of all rows."""
        return np.concatenate(inputs)

    def predict(self, x: np.ndarray) -> np.ndarray:
        """The answers, [rows, ...]."""
        return self.model(x)

    def unbatch(self, output: np.ndarray) -> list[np.ndarray]:
        """One answer a request."""
        return list(output)

    def encode_response(self, output: np.ndarray) -> Response:
        """The answer's float32 bytes."""
        return Response(output.tobytes())


if __name__ == "__main__":
    batch = int(os.environ.get("LIT_BATCH", MAX_BATCH))
    api = Served(max_batch_size=batch, batch_timeout=float(os.environ.get("LIT_T", "0.001")) if batch > 1 else 0)
    server = litserve.LitServer(
        api, accelerator="cpu", workers_per_device=WORKERS, fast_queue=os.environ.get("LIT_FAST", "1") == "1"
    )
    server.run(
        host=HOST,
        port=PORT,
        num_api_servers=int(os.environ.get("LIT_API", "1")),
        log_level="warning",
        access_log=False,
        generate_client_file=False,
    )
