"""What the awkward ONNX files are written with, and what is known about each of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
from onnx import helper, numpy_helper

Inputs: TypeAlias = dict[str, np.ndarray]
Shape: TypeAlias = Sequence[int | str | None]


@dataclass(frozen=True)
class Awkward:
    """`fresh(rows, seed)` are inputs that fit; `refusal` is a pattern of ExportFailed's message, or None if it builds.

    `recipe` are the recipe's values besides source, name and store. `batched` says whether the built model has a batch.
    """

    path: Path
    fresh: Callable[[int, int], Inputs]
    recipe: Mapping[str, Any] = field(default_factory=dict)
    batched: bool = True
    refusal: str | None = None


def weights(*shape: int, dtype: Any = np.float32, seed: int = 7) -> np.ndarray:
    values: np.ndarray = np.random.default_rng((seed, *shape)).standard_normal(shape).astype(dtype)
    return values


def floats(**shapes: Sequence[int]) -> Callable[[int, int], Inputs]:
    """Fresh fp32 inputs by name; -1 stands for the rows."""

    def fresh(rows: int, seed: int) -> Inputs:
        generator = np.random.default_rng((seed, rows))
        sizes = {name: [rows if size == -1 else size for size in shape] for name, shape in shapes.items()}
        return {name: generator.standard_normal(shape).astype(np.float32) for name, shape in sizes.items()}

    return fresh


def values(shapes: Mapping[str, tuple[Any, Shape | None]]) -> list[onnx.ValueInfoProto]:
    return [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape)
        for name, (dtype, shape) in shapes.items()
    ]


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, tuple[Any, Shape | None]],
    outputs: Mapping[str, tuple[Any, Shape | None]],
    constants: Mapping[str, np.ndarray] | None = None,
    opset: int = 20,
    ir_version: int = 10,
    domains: Sequence[str] = (),
) -> onnx.ModelProto:
    tensors = [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()]
    graph = helper.make_graph(nodes, "awkward", values(inputs), values(outputs), tensors)
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=imports, ir_version=ir_version)


def save(path: Path, proto: onnx.ModelProto) -> Path:
    onnx.save(proto, path)
    return path


node = helper.make_node
f32, i64 = np.float32, np.int64
