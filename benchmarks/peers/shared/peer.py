"""What every peer serves and how it is told: one model file in ONNX Runtime or OpenVINO, set by the environment.

The servers import this in environments of their own, which have nothing of this project: numpy and the engine only.
"""

from __future__ import annotations

import os

import numpy as np

MODEL = os.environ["MODEL"]
PORT = int(os.environ["PORT"])
WORKERS = int(os.environ["WORKERS"])
THREADS = int(os.environ["THREADS"])
MAX_BATCH = int(os.environ["MAX_BATCH"])
HOST = "127.0.0.1"


class Model:
    """MODEL in an engine of THREADS threads: one input, rows first, of numbers, to one output."""

    def __init__(self) -> None:
        (self._openvino if MODEL.endswith(".xml") else self._onnxruntime)()

    def _onnxruntime(self) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = THREADS
        # They sleep when idle.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        session = onnxruntime.InferenceSession(MODEL, options, providers=["CPUExecutionProvider"])
        (given,), (made,) = session.get_inputs(), session.get_outputs()
        self.input, self.output, self.shape = given.name, made.name, tuple(given.shape[1:])
        self.output_shape = tuple(made.shape[1:])
        self.dtype = np.dtype({"tensor(float)": np.float32, "tensor(uint8)": np.uint8}[given.type])
        self._run = lambda rows: session.run(None, {given.name: rows})[0]

    def _openvino(self) -> None:
        import openvino

        settings = {
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": THREADS,
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,
        }
        request = openvino.Core().compile_model(MODEL, "CPU", settings).create_infer_request()
        (given,), (made,) = request.model_inputs, request.model_outputs
        self.input, self.output = given.any_name, made.any_name
        self.shape = tuple(dimension.get_length() for dimension in list(given.partial_shape)[1:])
        self.output_shape = tuple(dimension.get_length() for dimension in list(made.partial_shape)[1:])
        self.dtype = np.dtype(given.element_type.to_dtype())
        self._run = lambda rows: request.infer({0: rows}, share_inputs=True)[0]

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """The answers to `rows`, float32 [rows, ...]."""
        answers: np.ndarray = self._run(rows)
        return answers

    def row(self, body: bytes | bytearray) -> np.ndarray:
        """A request's body, the bytes of one row, as [1, ...]."""
        return np.frombuffer(body, self.dtype).reshape(1, *self.shape)
