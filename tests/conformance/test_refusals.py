"""Who is at fault when an engine does not answer: the request for what is in it, or the engine."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from numpy.random import Generator
from onnx import TensorProto, helper, numpy_helper
from tests.conformance.conftest import Load
from tests.conformance.models import Case

from enginehouse.contract.errors import InferenceFailed, InvalidInput
from enginehouse.contract.manifest import ENGINE_KINDS, EngineKind
from enginehouse.contract.tensors import Signature, Tensors, TensorSpec
from enginehouse.engines.refusals import told

F32, I64 = np.dtype(np.float32), np.dtype(np.int64)
NO_RANGES = {"tensorrt": "the build stage gives only the batch a range"}


def case(
    name: str,
    nodes: list[onnx.NodeProto],
    inputs: tuple[TensorSpec, ...],
    good: Tensors,
    constants: dict[str, np.ndarray] | None = None,
) -> Case:
    """A model whose output `y` is [rows, free]; `good` is a request that it answers."""
    values = [
        helper.make_tensor_value_info(
            spec.name,
            helper.np_dtype_to_tensor_dtype(spec.dtype),
            [f"{spec.name}_{dim}" if extent is None else extent for dim, extent in enumerate(spec.shape)],
        )
        for spec in inputs
    ]
    graph = helper.make_graph(
        nodes,
        name,
        values,
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["r", "c"])],
        [numpy_helper.from_array(array, key) for key, array in (constants or {}).items()],
    )
    signature = Signature(inputs, (TensorSpec("y", F32, (None, None)),), batched=False)
    return Case(name, signature, graph, lambda rng, rows: good, lambda inputs: {}, unfit=NO_RANGES)


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


def free(name: str, dtype: np.dtype = F32) -> TensorSpec:
    return TensorSpec(name, dtype, (None, None))


def disagreeing(rng: Generator) -> list[tuple[Case, Tensors]]:
    """Models of random sizes, each with a request whose shapes do not go together."""
    rows, one, two = (int(number) for number in rng.permutation(np.arange(2, 9))[:3])
    pair = (free("a"), free("b"))
    found = []
    for op in ("Add", "Mul", "Max", "Concat"):
        node = helper.make_node(op, ["a", "b"], ["y"], **({"axis": 0} if op == "Concat" else {}))
        good = {"a": ones(rows, one), "b": ones(rows, one)}
        found.append((case(f"{op.lower()}{rows}", [node], pair, good), {"a": ones(rows, one), "b": ones(rows, two)}))
    multiply = helper.make_node("MatMul", ["a", "b"], ["y"])
    good = {"a": ones(rows, one), "b": ones(one, two)}
    found.append((case(f"matmul{rows}", [multiply], pair, good), {"a": ones(rows, one), "b": ones(two, one)}))
    return found


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("seed", range(3))
def test_shapes_that_do_not_go_together_are_the_requests_fault(
    kind: EngineKind, load: Load, seed: int, threads: int
) -> None:
    for number, (model, bad) in enumerate(disagreeing(np.random.default_rng(seed))):
        engine = load(model, threads=threads)
        good = model.sample(np.random.default_rng(number), 1)
        engine.infer(good)
        with pytest.raises(InvalidInput, match=f"^{kind}: "):
            engine.infer(bad)
        engine.infer(good)


@pytest.mark.parametrize("op", ["Gather", "GatherND", "ScatterND"])
def test_an_index_that_is_in_no_table_is_the_requests_fault(op: str, load: Load, kind: EngineKind) -> None:
    if kind != "onnxruntime-cpu":
        pytest.skip("the others do not look")
    table, ids = ones(10, 3), TensorSpec("i", I64, (None, 1))
    inputs = (ids, TensorSpec("u", F32, (None, 3))) if op == "ScatterND" else (ids,)
    nodes = [helper.make_node(op, ["t", *(spec.name for spec in inputs)], ["y" if op != "Gather" else "z"])]
    if op == "Gather":
        nodes.append(helper.make_node("Squeeze", ["z", "one"], ["y"]))
    more = {"u": ones(1, 3)} if op == "ScatterND" else {}
    good = {"i": np.array([[9]])} | more
    model = case(op.lower(), nodes, inputs, good, {"t": table} | ({"one": np.array([1])} if op == "Gather" else {}))
    engine = load(model)
    engine.infer(good)
    with pytest.raises(InvalidInput, match=f"^{kind}: .*10"):
        engine.infer({"i": np.array([[10]])} | more)


@pytest.mark.parametrize("kind", ENGINE_KINDS)
@pytest.mark.parametrize(
    "message",
    [
        "std::bad_alloc",
        "Failed to allocate memory for requested buffer of size 4294967296: the shapes mismatch",
        "[ONNXRuntimeError] : 9 : NOT_IMPLEMENTED : Could not find an implementation",
        "CUDA error: an illegal memory access was encountered; input index out of range",
        "FAIL : Non-zero status code returned while running Conv node. Status Message: CUDNN failure 4: CUDNN_STATUS_X",
        "FAIL : Non-zero status code returned while running Tile node. Status Message: bfc_arena.cc Failed to allocate",
        "cudaStreamSynchronize failed with cudaErrorIllegalAddress (an illegal memory access was encountered)",
        "something that nobody has seen before",
    ],
)
def test_what_is_not_said_of_the_request_is_the_engines_failure(kind: EngineKind, message: str) -> None:
    error = told(kind, message, {"x": ones(2, 3)})
    assert type(error) is InferenceFailed
    assert message in str(error)
    assert "'x' [2, 3]" in str(error)


def test_the_tables_path_to_a_gpu_kernel_is_no_failure_of_the_gpu() -> None:
    said = (
        "INVALID_ARGUMENT : running Gemm node: /onnxruntime/core/providers/cuda/math/gemm.cc GEMM: Dimension mismatch"
    )
    assert type(told("onnxruntime-cuda", said, {})) is InvalidInput
