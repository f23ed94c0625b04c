"""A model of some 10 ms a row, whose answers are known exactly, and which one input crashes (SIGFPE)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tests.integration.bundles import artifact

from enginehouse.contract.bundle import MANIFEST
from enginehouse.contract.manifest import Manifest, SignatureRecord
from enginehouse.contract.store import Store
from enginehouse.contract.tensors import Signature, TensorSpec

NAME = "guarded"
MAX_BATCH = 4
#: Whoever computes it is gone.
CRASHES = 6
_LEAST, _SEVEN = -(2**63), 7
_CHANNELS, _SIDE, _LAYERS = 128, 16, 24


def answer(x: int) -> int:
    """What the model has to say."""
    return -(2**63 // (x - _SEVEN))


def publish(store: Path) -> None:
    """`y = -2**63 / (x - 7)` in 64-bit integers, beside 24 convolutions a row whose result counts for nothing.

    Without a latency table: each replica times it where it runs.
    """
    spec = (TensorSpec("x", np.dtype(np.int64), (None, 1)),), (TensorSpec("y", np.dtype(np.int64), (None, 1)),)
    nodes = [
        helper.make_node("Sub", ["x", "seven"], ["by"]),
        helper.make_node("Div", ["least", "by"], ["quotient"]),
        helper.make_node("Cast", ["x"], ["number"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["number", "last"], ["image"]),
        helper.make_node("Mul", ["image", "zeros"], ["layer0"]),
        *(
            helper.make_node("Conv", [f"layer{n}", "weights"], [f"layer{n + 1}"], pads=[1, 1, 1, 1])
            for n in range(_LAYERS)
        ),
        helper.make_node("ReduceMax", [f"layer{_LAYERS}", "all"], ["most"], keepdims=0),
        helper.make_node("Cast", ["most"], ["nothing"], to=TensorProto.INT64),
        helper.make_node("Unsqueeze", ["nothing", "one"], ["nothings"]),
        helper.make_node("Add", ["quotient", "nothings"], ["y"]),
    ]
    constants = {
        "seven": np.array([_SEVEN], np.int64),
        "least": np.array([_LEAST], np.int64),
        "last": np.array([2, 3], np.int64),
        "one": np.array([1], np.int64),
        "all": np.array([1, 2, 3], np.int64),
        "zeros": np.zeros((1, _CHANNELS, _SIDE, _SIDE), np.float32),
        "weights": np.zeros((_CHANNELS, _CHANNELS, 3, 3), np.float32),
    }
    graph = helper.make_graph(
        nodes,
        NAME,
        [helper.make_tensor_value_info("x", TensorProto.INT64, ["rows", 1])],
        [helper.make_tensor_value_info("y", TensorProto.INT64, ["rows", 1])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    publish_graph(store, NAME, graph, Signature(*spec), MAX_BATCH, source="y = -2**63 / (x - 7)")


def publish_graph(
    store: Path, name: str, graph: onnx.GraphProto, signature: Signature, max_batch: int, source: str = ""
) -> None:
    """Publish `graph` as version 1 of a model that has nothing but its ONNX."""
    target = Store(store)
    folder = target.staging()
    (folder / "onnx-fp32").mkdir()
    opset = helper.make_opsetid("", 20)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=10), folder / "onnx-fp32" / "model.onnx")
    manifest = Manifest(
        name=name,
        version="1",
        created="2026-01-01T00:00:00Z",
        source=source or name,
        signature=SignatureRecord.of(signature),
        max_batch=max_batch,
        artifacts=(artifact(folder, "onnx"),),
    )
    (folder / MANIFEST).write_text(manifest.model_dump_json())
    target.publish(folder, name, "1")
