"""A model of sequences with a mask as pools and routers know it, around an engine in numpy."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence

import numpy as np
from tests.pipeline import sequences
from tests.unit.test_policy import artifact, manifest

from enginehouse.contract.errors import InferenceFailed
from enginehouse.contract.latency import LatencyPoint, LatencyTable
from enginehouse.contract.manifest import Artifact, Axis, Manifest, SignatureRecord
from enginehouse.contract.signature_record import PaddedInput, Padding
from enginehouse.contract.tensors import Computed, Domain, Signature, Tensors, TensorSpec

INT64 = np.dtype(np.int64)
SIGNATURE = Signature(
    (
        TensorSpec("input_ids", INT64, (None, None), Domain(0, sequences.WORDS)),
        TensorSpec("attention_mask", INT64, (None, None)),
    ),
    (TensorSpec("mean", np.dtype(np.float64), (None, 12)), TensorSpec("y", np.dtype(np.float64), (None, None, 12))),
)
PADDING = Padding(
    inputs=(
        PaddedInput(name="input_ids", dim=1, value=0),
        PaddedInput(name="attention_mask", dim=1, value=0, tells=True, mark=1),
    ),
    outputs=(("y", 1),),
    edges=(8, 16, 24, 32, 64, 128),
    masks=("start", "end", "holes"),
    within={"input_ids": (0, sequences.WORDS)},
)
ROWS = 8
GENERATOR = np.random.default_rng(2)
STATES = sequences.HARMLESS["masked attention, all states"]


def answer(inputs: Tensors) -> dict[str, np.ndarray]:
    x = sequences.attention(*sequences.parts(dict(inputs))[:2])
    return {"mean": sequences.mean(x, inputs["attention_mask"].astype(float)), "y": x}


def request(length: int, rows: int = 1) -> dict[str, np.ndarray]:
    mask = (np.arange(length) < GENERATOR.integers(1, length + 1, (rows, 1))).astype(np.int64)
    return {"input_ids": GENERATOR.integers(0, sequences.WORDS, (rows, length)), "attention_mask": mask}


class Engine:
    """Answers as the numpy model, and remembers the shapes of its calls. A call takes `seconds`."""

    signature = SIGNATURE
    precision = "fp32"
    inputs_only: dict[str, int] = {}

    def __init__(self, seconds: float = 0.0) -> None:
        self.calls: list[tuple[int, ...]] = []
        self.seconds = seconds

    def infer(self, inputs: Tensors) -> dict[str, np.ndarray]:
        self.calls.append(inputs["input_ids"].shape)
        time.sleep(self.seconds)
        if (inputs["input_ids"] >= sequences.WORDS).any():
            raise InferenceFailed("no such word")
        return answer(inputs)

    def close(self) -> None:
        """Nothing to let go of."""


def described(table: LatencyTable | None = None) -> tuple[Manifest, Artifact]:
    made = artifact("a", "onnx").model_copy(update={"padding": {"onnxruntime-cpu": PADDING}})
    axis = Axis(name="s", min=1, opt=16, max=200, dims=(("input_ids", 1), ("attention_mask", 1)))
    known = manifest([made], *([table] if table else []))
    return known.model_copy(
        update={"signature": SignatureRecord.of(SIGNATURE), "axes": (axis,), "max_batch": ROWS}
    ), made


def table(call_ms: float, position_ms: float) -> LatencyTable:
    points = [
        LatencyPoint(rows=rows, size=size, median_ms=ms, p90_ms=ms, min_ms=ms, count=3)
        for rows, size in itertools.product((1, 8), (8, 128))
        for ms in [call_ms + rows * size * position_ms]
    ]
    return LatencyTable(engine="onnxruntime-cpu", artifact="a", threads=1, host="h", points=tuple(points))


CHEAP_CALLS, DEAR_CALLS = table(0.0, 1.0), table(1e4, 1.0)


def check(asked: Sequence[Tensors], answers: Sequence[Computed]) -> None:
    for inputs, (outputs, _) in zip(asked, answers, strict=True):
        for name, want in answer(inputs).items():
            assert outputs[name].shape == want.shape
            np.testing.assert_allclose(outputs[name], want, rtol=1e-9, atol=1e-12)
