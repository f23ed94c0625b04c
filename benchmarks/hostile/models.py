"""What is served: a small model for the good requests, one with many classes and one of text for the others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tests.integration.bundles import publish

from benchmarks.faults.model import publish_graph
from enginehouse.contract.tensors import DTYPES, Signature, TensorSpec

CLASSES = 1000
#: Rows: a replica that loads a model times it with as many, and strings take it minutes.
MOST_ROWS = {"wide": 1 << 14, "text": 256, "grow": 4096}


def publish_all(store: Path) -> None:
    """`scale` (y = 2 x, 4 numbers a row), `wide` (y = 2 x, a thousand), `grow` (4 to 1000), `text` (y = x + "!")."""
    publish(store, "scale", "1", 2)
    two = numpy_helper.from_array(np.array([2], np.float32), "two")
    _publish(store, "wide", "FP32", TensorProto.FLOAT, [CLASSES], helper.make_node("Mul", ["x", "two"], ["y"]), two)
    ones = numpy_helper.from_array(np.ones((4, CLASSES), np.float32), "ones")
    grow = helper.make_node("MatMul", ["x", "ones"], ["y"])
    _publish(store, "grow", "FP32", TensorProto.FLOAT, [4], grow, ones, [CLASSES])
    mark = helper.make_tensor("mark", TensorProto.STRING, [1], [b"!"])
    _publish(
        store,
        "text",
        "BYTES",
        TensorProto.STRING,
        [CLASSES],
        helper.make_node("StringConcat", ["x", "mark"], ["y"]),
        mark,
    )


def _publish(
    store: Path,
    name: str,
    kind: str,
    element: int,
    shape: list[int],
    node: onnx.NodeProto,
    constant: onnx.TensorProto,
    made: list[int] | None = None,
) -> None:
    shapes = {"x": shape, "y": made or shape}
    spec = [TensorSpec(tensor, DTYPES[kind], (None, *of)) for tensor, of in shapes.items()]
    graph = helper.make_graph(
        [node],
        name,
        *([helper.make_tensor_value_info(tensor, element, ["rows", *of])] for tensor, of in shapes.items()),
        [constant],
    )
    publish_graph(store, name, graph, Signature((spec[0],), (spec[1],)), MOST_ROWS[name])
