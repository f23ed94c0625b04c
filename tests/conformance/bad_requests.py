"""Requests that pass the signature and that no model can answer: one for each kind of operator that may refuse them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper
from tests.conformance.models import Case
from tests.conformance.test_refusals import F32, I64, case, free, ones

from enginehouse.contract.tensors import Tensors, TensorSpec


@dataclass(frozen=True)
class Bad:
    """A model, a request that it answers and one that it cannot.

    `unsafe` says that OpenVINO is not run with the model at all: 2026.4.1 would crash, or answer something.
    """

    model: Case
    good: Tensors
    bad: Tensors
    unsafe: bool = False


def node(op: str, inputs: str, outputs: str = "y", **attributes: object) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(), outputs.split(), **attributes)


def ids(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def rows(*values: int) -> np.ndarray:
    return ids(*values).reshape(1, -1)


def line(name: str, length: int | None = None) -> TensorSpec:
    return TensorSpec(name, I64, (length,))


def number(name: str) -> TensorSpec:
    return TensorSpec(name, F32, ())


def bad(
    name: str,
    nodes: list[onnx.NodeProto],
    inputs: list[TensorSpec],
    good: Tensors,
    wrong: Tensors,
    *,
    unsafe: bool = False,
    **constants: np.ndarray,
) -> Bad:
    """`wrong` are the inputs of the good request that the bad one has otherwise."""
    model = case(f"bad_{name}", nodes, tuple(inputs), good, constants)
    return Bad(model, good, {**good, **wrong}, unsafe)


A, B, AI, BI = free("a"), free("b"), free("a", I64), free("b", I64)
AXIS0 = ids(0)


def under_conv(op: onnx.NodeProto) -> list[onnx.NodeProto]:
    """`op` on [1, rows, columns]."""
    return [node("Unsqueeze", "a axis", "b"), op, node("Squeeze", "c axis")]


ALL = [
    bad("gather", [node("Gather", "table a")], [AI], {"a": rows(1, 2)}, {"a": rows(99)}, table=ones(10)),
    bad("gathers", [node("Gather", "table a")], [AI], {"a": rows(1)}, {"a": rows(-11)}, table=ones(10)),
    bad(
        "gathernd",
        [node("GatherND", "a i")],
        [A, TensorSpec("i", I64, (None, 1))],
        {"a": ones(4, 3), "i": ids(3).reshape(1, 1)},
        {"i": ids(9).reshape(1, 1)},
        unsafe=True,
    ),
    bad(
        "dftlength",
        [node("DFT", "a n along")],
        [TensorSpec("a", F32, (None, 8, 1)), TensorSpec("n", I64, ())],
        {"a": ones(2, 8, 1), "n": ids(8).reshape(())},
        {"n": ids(0).reshape(())},
        unsafe=True,
        along=ids(1).reshape(()),
    ),
    bad(
        "gatherelements",
        [node("GatherElements", "a i", axis=1)],
        [A, free("i", I64)],
        {"a": ones(1, 3), "i": rows(0, 2)},
        {"i": rows(0, 9)},
    ),
    bad(
        "scatterelements",
        [node("ScatterElements", "a i b", axis=1)],
        [A, free("i", I64), B],
        {"a": ones(1, 3), "i": rows(2), "b": ones(1, 1)},
        {"i": rows(9)},
        unsafe=True,
    ),
    bad(
        "scatternd",
        [node("ScatterND", "a i b")],
        [A, TensorSpec("i", I64, (None, 1)), B],
        {"a": ones(4, 3), "i": ids(0, 1).reshape(2, 1), "b": ones(2, 3)},
        {"b": ones(2, 2)},
    ),
    bad("reshape", [node("Reshape", "a s")], [A], {"a": ones(2, 6)}, {"a": ones(2, 5)}, s=ids(-1, 4)),
    bad(
        "reshape_to",
        [node("Reshape", "a s")],
        [A, line("s", 2)],
        {"a": ones(2, 6), "s": ids(3, 4)},
        {"s": ids(5, 4)},
    ),
    bad(
        "reshape_two",
        [node("Reshape", "a s")],
        [A, line("s", 2)],
        {"a": ones(2, 6), "s": ids(3, 4)},
        {"s": ids(-1, -1)},
    ),
    bad("expand", [node("Expand", "a s")], [A, line("s", 2)], {"a": ones(1, 3), "s": ids(2, 3)}, {"s": ids(2, 4)}),
    bad("split", [node("Split", "a s", "y z", axis=1)], [A], {"a": ones(2, 6)}, {"a": ones(2, 5)}, s=ids(2, 4)),
    bad("matmul", [node("MatMul", "a w")], [A], {"a": ones(2, 3)}, {"a": ones(2, 4)}, w=ones(3, 2)),
    bad("gemm", [node("Gemm", "a w")], [A], {"a": ones(2, 3)}, {"a": ones(2, 4)}, w=ones(3, 2)),
    bad("pad", [node("Pad", "a p")], [A], {"a": ones(4, 4)}, {"a": ones(2, 2)}, p=ids(0, -3, 0, 0)),
    bad("pad_by", [node("Pad", "a p")], [A, line("p")], {"a": ones(4, 4), "p": ids(0, 0, 0, 1)}, {"p": ids(0, 0, 1)}),
    bad("reflect", [node("Pad", "a p", mode="reflect")], [A], {"a": ones(4, 4)}, {"a": ones(2, 2)}, p=ids(0, 3, 0, 0)),
    bad(
        "tile",
        [node("Tile", "a p")],
        [A, line("p", 2)],
        {"a": ones(4, 4), "p": ids(1, 2)},
        {"p": ids(-1, 2)},
        unsafe=True,
    ),
    bad(
        "tile_of",
        [node("Tile", "a p")],
        [A, line("p")],
        {"a": ones(4, 4), "p": ids(1, 2)},
        {"p": ids(1, 2, 3)},
        unsafe=True,
    ),
    bad("topk", [node("TopK", "a k", "y z", axis=1)], [A], {"a": ones(2, 6)}, {"a": ones(2, 3)}, k=ids(4)),
    bad(
        "topk_of",
        [node("TopK", "a k", "y z", axis=1)],
        [A, line("k", 1)],
        {"a": ones(2, 6), "k": ids(2)},
        {"k": ids(-2)},
        unsafe=True,
    ),
    bad(
        "slice",
        [node("Slice", "a s e x step")],
        [A, line("step", 1)],
        {"a": ones(2, 6), "step": ids(1)},
        {"step": ids(0)},
        s=ids(0),
        e=ids(4),
        x=ids(1),
        unsafe=True,
    ),
    bad(
        "onehot",
        [node("OneHot", "i d v")],
        [line("i"), line("d", 1)],
        {"i": ids(1, 2), "d": ids(4)},
        {"d": ids(-4)},
        v=np.array([0, 1], np.float32),
        unsafe=True,
    ),
    bad(
        "range",
        [node("Range", "a b c", "r"), node("Unsqueeze", "r axis")],
        [number("a"), number("b"), number("c")],
        {"a": np.array(0, np.float32), "b": np.array(4, np.float32), "c": np.array(1, np.float32)},
        {"c": np.array(0, np.float32)},
        axis=AXIS0,
        unsafe=True,
    ),
    bad(
        "squeeze",
        [node("Squeeze", "a axis", "b"), node("Unsqueeze", "b axis")],
        [A],
        {"a": ones(1, 3)},
        {"a": ones(2, 3)},
        axis=AXIS0,
    ),
    bad(
        "conv",
        under_conv(node("Conv", "b w", "c")),
        [A],
        {"a": ones(3, 8)},
        {"a": ones(5, 8)},
        axis=AXIS0,
        w=ones(4, 3, 2),
    ),
    bad(
        "conv_small",
        under_conv(node("Conv", "b w", "c")),
        [A],
        {"a": ones(3, 8)},
        {"a": ones(3, 2)},
        axis=AXIS0,
        w=ones(4, 3, 5),
    ),
    bad(
        "pool_small",
        under_conv(node("MaxPool", "b", "c", kernel_shape=[5])),
        [A],
        {"a": ones(3, 8)},
        {"a": ones(3, 2)},
        axis=AXIS0,
    ),
    bad(
        "resize",
        [
            node("Unsqueeze", "a axis", "b"),
            helper.make_node("Resize", ["b", "", "", "s"], ["c"], mode="nearest"),
            node("Squeeze", "c axis"),
        ],
        [A, line("s", 3)],
        {"a": ones(3, 8), "s": ids(1, 3, 4)},
        {"s": ids(1, 3, -4)},
        axis=AXIS0,
    ),
    bad(
        "where",
        [node("Where", "m a b")],
        [free("m", np.dtype(bool)), A, B],
        {"m": ones(2, 3) > 0, "a": ones(2, 3), "b": ones(2, 3)},
        {"a": ones(2, 4)},
    ),
    bad(
        "einsum",
        [node("Einsum", "a b", equation="ij,jk->ik")],
        [A, B],
        {"a": ones(2, 3), "b": ones(3, 2)},
        {"b": ones(2, 3)},
    ),
    bad("layernorm", [node("LayerNormalization", "a w")], [A], {"a": ones(2, 3)}, {"a": ones(2, 4)}, w=ones(3)),
    bad("filled", [node("ConstantOfShape", "s")], [line("s", 2)], {"s": ids(2, 3)}, {"s": ids(2, -3)}),
    bad("cumsum", [node("CumSum", "a x")], [A, line("x", 1)], {"a": ones(2, 3), "x": ids(1)}, {"x": ids(5)}),
    bad(
        "divide",
        [node("Div", "a b", "d"), node("Cast", "d", to=1)],
        [AI, BI],
        {"a": rows(4, 4), "b": rows(2, 2)},
        {"b": rows(2, 0)},
    ),
    bad(
        "modulo",
        [node("Mod", "a b", "d"), node("Cast", "d", to=1)],
        [AI, BI],
        {"a": rows(4, 4), "b": rows(2, 2)},
        {"b": rows(2, 0)},
    ),
]
#: What takes more memory than there is.
HUGE = bad("filled_huge", [node("ConstantOfShape", "s")], [line("s", 2)], {"s": ids(2, 3)}, {"s": ids(2**22, 2**20)})
