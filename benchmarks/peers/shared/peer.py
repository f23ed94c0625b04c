"""What every peer serves and how it is told: one ONNX file in ONNX Runtime, set by the environment.

The servers import this in environments of their own, which have nothing of this project: numpy and ONNX Runtime only.
"""

from __future__ import annotations

import os

import numpy as np
import onnxruntime

MODEL = os.environ["MODEL"]
PORT = int(os.environ["PORT"])
WORKERS = int(os.environ["WORKERS"])
THREADS = int(os.environ["THREADS"])
MAX_BATCH = int(os.environ["MAX_BATCH"])
HOST = "127.0.0.1"


class Model:
    """MODEL in a session of THREADS threads that sleep when idle: one float32 input, rows first, to one output."""

    def __init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = THREADS
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(MODEL, options, providers=["CPUExecutionProvider"])
        (self.input,) = self._session.get_inputs()
        (self.output,) = self._session.get_outputs()

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """The answers to `rows`, float32 [rows, ...]."""
        answers: np.ndarray = self._session.run(None, {self.input.name: rows})[0]
        return answers

    def row(self, body: bytes | bytearray) -> np.ndarray:
        """A request's body, the float32 bytes of one row, as [1, ...]."""
        return np.frombuffer(body, np.float32).reshape(1, *self.input.shape[1:])
