"""A model exported for one row, made to take any number of rows, and proven to answer each row as before.

The rewriting only guesses where the 1 of the batch was baked in; what decides is the proof: the rewritten model on
1, 2 and 5 rows and in other company, up to a full batch, against the original, row by row, at two extents of what is
free besides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx

from enginehouse.contract.errors import ExportFailed
from enginehouse.contract.tensors import Signature, Tensors
from enginehouse_build.reference.adopt.refusals import constants_of
from enginehouse_build.reference.adopt.shapes import Dim, Shapes, dims, infer, is_tensor, shapes_of
from enginehouse_build.reference.adopt.trial import agree, answers, attempt, load_proto
from enginehouse_build.reference.company import joined
from enginehouse_build.reference.crowds import MOST_ROWS
from enginehouse_build.reference.onnx import PROOF_ROWS, Run
from enginehouse_build.reference.proof import prove_company
from enginehouse_build.reference.scores import prove_scores
from enginehouse_build.reference.strangers import Door

_PREFIX = "enginehouse/batch"
#: Outputs that differ by less than this between rows cannot show that rows are kept apart.
_TELLING = 1e-3


def make_dynamic(
    proto: onnx.ModelProto, signature: Signature, original: Run, folder: Path, max_rows: int = MOST_ROWS
) -> onnx.ModelProto:
    """A copy of `proto` whose dim 0 is free on every input and output.

    `proto` takes one row (dim 0 of every input is 1 or free); `original` runs the model as the user gave it. Raises
    ExportFailed when dim 0 cannot be the batch or the proof, of up to `max_rows` at once, fails; `folder` is for the
    files of the proof.
    """
    for spec in signature.inputs:
        if not spec.shape or spec.shape[0] not in (1, None):
            raise ExportFailed(f"input {spec.name!r} has the shape {list(spec.shape)}: its dim 0 is no batch of 1")
    trials = list(answers(original, signature.inputs, 1, max(PROOF_ROWS)))
    for name, array in trials[0][1][0].items():
        if array.ndim == 0 or len(array) != 1:
            raise ExportFailed(f"output {name!r} has the shape {list(array.shape)} for one row: its dim 0 is no batch")
    symbol = _symbol(proto)
    freed = _rewrite(proto, symbol)
    for rows, alone in trials[:1]:
        if not _telling(alone):
            _prove_inside(proto, freed, rows[:2], folder)
    run, door = load_proto(freed, folder), Door.of(proto, signature.inputs)
    for rows, alone in trials:
        _prove(run, rows, alone)
        prove_company(run, rows, alone, original, joined(rows), door, max_rows)
    del run
    prove_scores(freed, joined(trials[0][0]), folder, door=door, max_rows=max_rows)
    # The proof has shown that all other dimensions are what they were.
    for output, was in zip(freed.graph.output, proto.graph.output, strict=True):
        output.CopyFrom(was)
        output.type.tensor_type.shape.dim[0].dim_param = symbol
    return freed


def _rewrite(proto: onnx.ModelProto, symbol: str) -> onnx.ModelProto:
    """`proto` with dim 0 of every input free, and the places patched that say 1 where they mean the batch."""
    shapes, live, constants = shapes_of(infer(proto)), _live(proto.graph), constants_of(proto.graph)
    freed = onnx.ModelProto()
    freed.CopyFrom(proto)
    graph = freed.graph
    # What is recorded for the tensors between was true for one row.
    del graph.value_info[:]
    for value in graph.input:
        value.type.tensor_type.shape.dim[0].dim_param = symbol
    added: list[onnx.NodeProto] = []
    nodes: list[onnx.NodeProto] = []
    concats = {node.output[0]: node for node in graph.node if node.op_type == "Concat"}
    for node in graph.node:
        before = len(added)
        if node.op_type == "Reshape" and len(node.input) == 2 and node.input[0] in live:
            target, made_of = constants.get(node.input[1]), concats.get(node.input[1])
            if target is not None and (opened := _opened_target(node, target, shapes)) is not None:
                node.input[1] = _constant(graph, opened)
            elif made_of is not None:
                node.input[1] = _opened_concat(graph, added, made_of, constants)
        elif node.op_type == "Resize" and len(node.input) == 4 and node.input[0] in live:
            sizes = constants.get(node.input[3])
            if sizes is not None and len(sizes) == len(shapes.get(node.input[0], ())) and sizes[0] == 1:
                node.input[3] = _with_rows(graph, added, sizes[1:])
        elif node.op_type == "Concat":
            _widen_constants(graph, added, node, shapes, live)
        nodes += [*added[before:], node]
    if added:
        nodes = [*_row_count(graph), *nodes]
    del graph.node[:]
    graph.node.extend(nodes)
    for output in graph.output:
        output.type.tensor_type.ClearField("shape")
    return freed


def _opened_target(node: onnx.NodeProto, target: np.ndarray, shapes: Shapes) -> np.ndarray | None:
    """`target` with dim 0 left open; None when it is so already or cannot be."""
    if target.ndim != 1 or not len(target) or target[0] < 1:
        return None
    made: tuple[Dim, ...] = shapes.get(node.output[0], ())
    known = [size for size in made if isinstance(size, int) and size > 0]
    if len(known) == len(target):
        return np.array([-1, *known[1:]], np.int64)
    if -1 not in target:
        return np.array([-1, *target[1:]], np.int64)
    # Another dimension is open: dim 0 can only be copied, which is right where it is the batch already.
    return np.array([0, *target[1:]], np.int64) if target[0] == 1 else None


def _opened_concat(
    graph: onnx.GraphProto, added: list[onnx.NodeProto], target: onnx.NodeProto, constants: Mapping[str, np.ndarray]
) -> str:
    """`_opened_target` for a target put together while the model runs: a fixed dim 0, then sizes of tensors."""
    first, *rest = target.input
    fixed = constants.get(first)
    if fixed is None or fixed.shape != (1,) or fixed[0] < 1:
        return str(target.output[0])
    copied = any(-1 in constants.get(name, ()) for name in rest)
    name = f"{_PREFIX}/target/{len(added)}"
    opened = _constant(graph, np.array([0 if copied else -1], np.int64))
    added.append(onnx.helper.make_node("Concat", [opened, *rest], [name], name, axis=0))
    return name


def _widen_constants(
    graph: onnx.GraphProto, added: list[onnx.NodeProto], node: onnx.NodeProto, shapes: Shapes, live: set[str]
) -> None:
    """Repeat what a Concat puts beside the batch, such as a transformer's class token, once for each row."""
    axis = next(attribute.i for attribute in node.attribute if attribute.name == "axis")
    if axis == 0 or not live.intersection(node.input):
        return
    for at, name in enumerate(node.input):
        shape = shapes.get(name, ())
        if name not in live and axis != -len(shape) and shape and shape[0] == 1:
            widened = f"{_PREFIX}/{name}/{len(added)}"
            ones = np.ones(len(shape) - 1, np.int64)
            added.append(onnx.helper.make_node("Expand", [name, _with_rows(graph, added, ones)], [widened], widened))
            node.input[at] = widened


def _row_count(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Nodes that make the number of rows, as a tensor of one dimension, from the first input."""
    zero = _constant(graph, np.array([0], np.int64))
    shape = f"{_PREFIX}/shape"
    return [
        onnx.helper.make_node("Shape", [graph.input[0].name], [shape], shape),
        onnx.helper.make_node("Gather", [shape, zero], [f"{_PREFIX}/rows"], f"{_PREFIX}/rows", axis=0),
    ]


def _with_rows(graph: onnx.GraphProto, added: list[onnx.NodeProto], rest: np.ndarray) -> str:
    """The shape tensor [rows, *rest]."""
    if not len(rest):
        return f"{_PREFIX}/rows"
    name = f"{_PREFIX}/shape/{len(added)}"
    added.append(onnx.helper.make_node("Concat", [f"{_PREFIX}/rows", _constant(graph, rest)], [name], name, axis=0))
    return name


def _constant(graph: onnx.GraphProto, array: np.ndarray) -> str:
    name = f"{_PREFIX}/constant/{len(graph.initializer)}"
    graph.initializer.append(onnx.numpy_helper.from_array(array.astype(np.int64), name))
    return name


def _live(graph: onnx.GraphProto) -> set[str]:
    """Tensors that depend on an input."""
    live = {value.name for value in graph.input}
    for node in graph.node:
        branches = any(attribute.HasField("g") for attribute in node.attribute)
        if branches or live.intersection(node.input):
            live.update(node.output)
    return live - {""}


def _symbol(proto: onnx.ModelProto) -> str:
    """A name for the batch: the one that an input's dim 0 has already, or one that no other dimension has."""
    shapes = [dims(value) or () for value in proto.graph.input]
    for shape in shapes:
        if isinstance(shape[0], str):
            return shape[0]
    taken = {dim for shape in shapes for dim in shape}
    return next(name for name in ("batch", "rows", _PREFIX) if name not in taken)


def _prove(run: Run, rows: Sequence[Tensors], answers: Sequence[Tensors]) -> None:
    for count in PROOF_ROWS:
        what = f"with {count} rows"
        agree(attempt(run, joined(rows[:count]), what), joined(answers[:count]), what)


def _telling(answers: list[Tensors]) -> bool:
    """Whether every output answers the first two rows differently, so that a mixture of rows would show."""
    return not any(_alike(array, answers[1][name]) for name, array in answers[0].items())


def _alike(one: np.ndarray, other: np.ndarray) -> bool:
    if one.dtype.hasobject:
        return np.array_equal(one, other)
    return np.allclose(one, other, rtol=_TELLING, atol=0, equal_nan=True)


def _prove_inside(proto: onnx.ModelProto, freed: onnx.ModelProto, rows: list[Tensors], folder: Path) -> None:
    """Compare the tensors between inputs and outputs as well. Raises ExportFailed."""
    what = f"inside, with {len(rows)} rows"
    # One session at a time: each holds all weights.
    before = load_proto(_laid_open(proto, proto), folder)
    want = joined([attempt(before, row, what) for row in rows])
    del before
    got = attempt(load_proto(_laid_open(freed, proto), folder), joined(rows), what)
    for name, array in want.items():
        # Whole numbers inside are places and sizes, which count through all rows where the batch is flattened.
        if got[name].shape == array.shape and array.dtype.kind == "f":
            agree({name: got[name]}, {name: array}, what)


def _laid_open(proto: onnx.ModelProto, like: onnx.ModelProto) -> onnx.ModelProto:
    """`proto` with every live tensor of `like` that has dimensions as an output."""
    laid_open = onnx.ModelProto()
    laid_open.CopyFrom(proto)
    live = _live(like.graph)
    del laid_open.graph.output[:]
    for value in (*infer(like).graph.value_info, *like.graph.output):
        if value.name in live and is_tensor(value) and dims(value) != ():
            kind = value.type.tensor_type.elem_type
            laid_open.graph.output.append(onnx.helper.make_tensor_value_info(value.name, kind, None))
    return laid_open
