"""PyTriton, NVIDIA's Triton core before Python callables: POST a v2 body of binary data to /v2/models/model/infer.

Tuned as its pages on performance say: an instance per core (`infer_func` as a list), Triton's dynamic batcher without a
delay (it takes what has queued up meanwhile; 1 and 2 ms cost one connection that much and gained nothing), metrics and
gRPC off. Triton's stub needs the interpreter's libpython, which not every Python puts on the loader's path.
"""

from __future__ import annotations

import os
import sysconfig

import numpy as np
from peer import HOST, MAX_BATCH, PORT, WORKERS, Model
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig


class Instance:
    """One engine, as the callable that PyTriton wants."""

    def __init__(self) -> None:
        self.model = Model()

    @batch
    def __call__(self, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        """The outputs by name for the inputs by name."""
        (rows,) = inputs.values()
        return {self.model.output: self.model(rows)}


if __name__ == "__main__":
    os.environ["LD_LIBRARY_PATH"] = sysconfig.get_config_var("LIBDIR")
    instances = [Instance() for _ in range(WORKERS)]
    model = instances[0].model
    config = TritonConfig(http_address=HOST, http_port=PORT, allow_grpc=False, allow_metrics=False, exit_timeout_secs=5)
    with Triton(config=config) as triton:
        triton.bind(
            model_name="model",
            infer_func=instances,
            inputs=[Tensor(name=model.input, dtype=model.dtype.type, shape=model.shape)],
            outputs=[Tensor(name=model.output, dtype=np.float32, shape=model.output_shape)],
            config=ModelConfig(max_batch_size=MAX_BATCH, batcher=DynamicBatcher(max_queue_delay_microseconds=0)),
        )
        triton.serve()
