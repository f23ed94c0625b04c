"""Which values may index a table is read off the graph: the door refuses what ONNX Runtime does, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.random import Generator
from onnx import TensorProto, helper, numpy_helper

from enginehouse.contract.bundle import Bundle
from enginehouse.contract.errors import BuildError, InvalidInput
from enginehouse.contract.tensors import Domain
from enginehouse.engines import load_engine
from enginehouse_build.inputs.recipe import Recipe
from enginehouse_build.reference.domains import domains_of
from enginehouse_build.reference.onnx import plain_session, signature_of
from enginehouse_build.reference.reference import make_reference

from .graphs import model

INT_DTYPES = (np.int64, np.int32, np.int16, np.int8, np.uint8, np.uint32)


def looked_up(rng: Generator) -> tuple[onnx.ModelProto, np.dtype, int]:
    """A random graph that looks its input `x` [b, 4] up in one or two tables; the input's dtype, the smallest table."""
    dtype = np.dtype(rng.choice(INT_DTYPES))
    nodes: list[onnx.NodeProto] = []
    constants: dict[str, np.ndarray] = {"column": np.array([1], np.int64), "flat": np.array([-1], np.int64)}
    outputs = {}
    sizes = []
    for number in range(rng.integers(1, 3)):
        size = int(rng.integers(1, 60))
        sizes.append(size)
        at = "x"
        if dtype not in (np.int64, np.int32) or rng.random() < 0.3:
            nodes.append(helper.make_node("Cast", [at], [f"cast{number}"], to=TensorProto.INT64))
            at = f"cast{number}"
        for step in rng.choice(["Identity", "Unsqueeze", "Reshape", "Flatten", "Transpose"], rng.integers(0, 4)):
            more = {"Unsqueeze": ["column"], "Reshape": ["flat"]}.get(step, [])
            nodes.append(helper.make_node(step, [at, *more], [f"n{len(nodes)}"]))
            at = nodes[-1].output[0]
        axis = int(rng.integers(-2, 2))
        shape = (size, 3) if axis in (0, -2) else (3, size)
        table, name = rng.standard_normal(shape).astype(np.float32), f"table{number}"
        if rng.random() < 0.5:
            constants[name] = table
        else:
            nodes.insert(0, helper.make_node("Constant", [], [name], value=numpy_helper.from_array(table)))
        if rng.random() < 0.3:
            nodes.append(helper.make_node("Identity", [name], [name + "copy"]))
            name += "copy"
        nodes.append(helper.make_node("Gather", [name, at], [f"y{number}"], axis=axis))
        outputs[f"y{number}"] = (np.float32, None)
    return model(nodes, {"x": (dtype, ["b", 4])}, outputs, constants, opset=17), dtype, min(sizes)


def session(proto: onnx.ModelProto, folder: Path) -> Callable[..., object]:
    path = folder / "model.onnx"
    onnx.save(proto, path)
    return plain_session(path)


@pytest.mark.parametrize("seed", range(40))
def test_the_door_refuses_the_values_that_the_engine_refuses(seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    proto, dtype, size = looked_up(rng)
    for value in proto.graph.output:
        value.type.tensor_type.shape.SetInParent()
    spec = signature_of(proto, True).inputs[0]
    assert spec.domain == Domain(-size, size)
    run = session(proto, tmp_path)
    limits = np.iinfo(dtype)
    edges = {-size - 1, -size, -1, 0, size - 1, size, int(rng.integers(-70, 70)), 10_000}
    for value in sorted(edge for edge in edges if limits.min <= edge <= limits.max):
        x = np.zeros((3, 4), dtype)
        where = tuple(rng.integers(0, (3, 4)))
        x[where] = value
        refused = False
        try:
            run({"x": x})
        except Exception as error:
            assert "bounds" in str(error)
            refused = True
        assert refused == (not -size <= value < size)
        if refused:
            with pytest.raises(
                InvalidInput, match=rf"'x' has the value {value} at \[{where[0]}, {where[1]}\]; .* takes "
            ):
                spec.domain.check("x", x)
        else:
            spec.domain.check("x", x)


TABLE = {"t": np.ones((10, 3), np.float32)}
Y = {"y": (np.float32, None)}


def node(op: str, *inputs: str, to: str = "y", **attributes: object) -> onnx.NodeProto:
    return helper.make_node(op, inputs, [to], **attributes)


def cast(name: str, dtype: int, to: str = "i") -> onnx.NodeProto:
    return helper.make_node("Cast", [name], [to], to=dtype)


LOOKUP = node("Gather", "t", "i")


@pytest.mark.parametrize(
    ("nodes", "dtype", "more"),
    [
        # Arithmetic makes other values of them.
        ([node("Mod", "x", "ten", to="i"), LOOKUP], np.int64, TABLE),
        ([node("Clip", "x", "", "nine", to="i"), LOOKUP], np.int64, TABLE),
        # So do casts: every number is 0 or 1 as a bool, and 0.5 is 0.
        ([cast("x", TensorProto.BOOL, "b"), cast("b", TensorProto.INT64), LOOKUP], np.int64, TABLE),
        ([cast("x", TensorProto.UINT8, "b"), cast("b", TensorProto.INT64), LOOKUP], np.int64, TABLE),
        ([cast("x", TensorProto.INT64), LOOKUP], np.float32, TABLE),
        # An id outside the depth is legal: all zeros.
        ([node("OneHot", "x", "ten", "v")], np.int64, {"v": np.array([0, 1], np.float32)}),
        # The table is computed; the input is the table; nobody wants the result.
        ([node("Relu", "t", to="r"), node("Gather", "r", "x")], np.int64, TABLE),
        ([node("Gather", "x", "ten")], np.int64, {}),
        ([node("Gather", "t", "x", to="z"), cast("x", TensorProto.FLOAT, "y")], np.int64, TABLE),
    ],
)
def test_values_that_may_be_legal_are_never_refused(
    nodes: list[onnx.NodeProto], dtype: type, more: dict[str, np.ndarray]
) -> None:
    constants = {"ten": np.array(10, np.int64), "nine": np.array(9, np.int64)} | more
    assert domains_of(model(nodes, {"x": (dtype, ["b", 4])}, Y, constants, opset=17)) == {}


def test_of_several_numbers_that_are_one_index_the_longest_dimension_counts() -> None:
    nodes = [helper.make_node("GatherND", ["t", "x"], ["y"])]
    assert domains_of(model(nodes, {"x": (np.int64, ["b", 2])}, Y, TABLE, opset=17)) == {"x": Domain(-10, 10)}
    nodes = [helper.make_node("GatherElements", ["t", "x"], ["y"], axis=1)]
    assert domains_of(model(nodes, {"x": (np.int64, ["b", 3])}, Y, TABLE, opset=17)) == {"x": Domain(-3, 3)}


def embedding(folder: Path) -> Path:
    """Looks up `ids` in a table of 10 and adds `mask`, both of any length."""
    nodes = [helper.make_node("Gather", ["e", "ids"], ["v"]), helper.make_node("Add", ["v", "mask"], ["y"])]
    shape = ["batch", "sequence"]
    proto = model(
        nodes,
        {"ids": (np.int64, shape), "mask": (np.float32, shape)},
        {"y": (np.float32, shape)},
        {"e": np.arange(10, dtype=np.float32)},
        opset=17,
    )
    path = folder / "embedding.onnx"
    onnx.save(proto, path)
    return path


def request(ids: int, mask: int, value: int = 3) -> dict[str, np.ndarray]:
    return {"ids": np.full((1, ids), value), "mask": np.zeros((1, mask), np.float32)}


def test_a_built_bundle_refuses_what_no_engine_should_be_asked(
    tmp_path: Path, build_onnx: Callable[..., Bundle]
) -> None:
    axes = {"sequence": {"min": 2, "opt": 4, "max": 6}}
    bundle = build_onnx(embedding(tmp_path), axes=axes, formats=("onnx", "openvino"))
    manifest = Bundle.open(bundle.path).manifest
    assert [artifact.status for artifact in manifest.artifacts] == ["ready", "ready"]
    assert manifest.signature.inputs[0].domain == (-10, 10)
    assert '"domain"' not in manifest.signature.inputs[1].model_dump_json()
    door = manifest.request_signature()
    engine = load_engine("openvino-cpu", bundle, manifest.artifact("openvino-fp32"), threads=1)
    for take in (door.check, engine.infer):
        take(request(2, 2))
        take(request(6, 6, -10))
        with pytest.raises(InvalidInput, match="'sequence': it is 4 in 'ids' .* and 5 in 'mask'"):
            take(request(4, 5))
        for extent in (1, 7):
            with pytest.raises(InvalidInput, match=f"'sequence' is {extent} .* 2 to 6"):
                take(request(extent, extent))
        with pytest.raises(InvalidInput, match="'ids' has the value 10 at .* takes -10 to 9"):
            take(request(4, 4, 10))
    engine.close()


#: Looks its input up in a table of 10 rows, with the formula.
_FACTORY = """
import torch
from torch import nn
from enginehouse_build import ModelSource

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(10, 3))

    def forward(self, ids):
        return {formula}

def make():
    return ModelSource(Net(), {{"ids": torch.zeros(2, 4, dtype=torch.int64)}}, samples={samples})
"""


@pytest.mark.parametrize("samples", ["None", "{'ids': (torch.arange(40).reshape(10, 4) % 10).numpy()}"])
@pytest.mark.parametrize(
    ("formula", "low"),
    [
        ("nn.functional.embedding(ids, self.table)", 0),
        ("nn.functional.embedding(ids, self.table).sum(1)", 0),
        ("self.table.index_select(0, ids.flatten()).reshape(-1, 12)", 0),
        ("self.table[ids]", -10),
    ],
)
def test_negative_numbers_are_let_in_only_where_the_module_takes_them(
    formula: str, low: int, samples: str, tmp_path: Path
) -> None:
    source = tmp_path / "factory.py"
    source.write_text(_FACTORY.format(formula=formula, samples=samples))
    made = make_reference(
        tmp_path, Recipe.of(source=f"{source}:make", name="m", store=str(tmp_path / "store"), threads=1, max_batch=4)
    )
    (spec,) = made.signature.inputs
    assert spec.domain == Domain(low, 10)
    if low == 0:
        with pytest.raises(InvalidInput, match="'ids' has the value -1 at .* takes 0 to 9"):
            made.signature.check({"ids": np.full((1, 4), -1)})


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        (request(4, 4, 10), "'ids' has the value 10"),
        (request(4, 5), "disagree on the dimension 'sequence'"),
        (request(9, 9), "'sequence' is 9"),
    ],
)
def test_samples_that_would_be_refused_are_no_samples(
    rows: dict[str, np.ndarray], told: str, tmp_path: Path, build_onnx: Callable[..., Bundle]
) -> None:
    np.savez(tmp_path / "rows.npz", **rows)
    axes = {"sequence": {"min": 2, "opt": 4, "max": 6}}
    with pytest.raises(BuildError, match=told):
        build_onnx(embedding(tmp_path), axes=axes, samples=tmp_path / "rows.npz", formats=("onnx",))
