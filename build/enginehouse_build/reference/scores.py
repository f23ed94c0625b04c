"""The scores that labels are taken from, proven independent of company too: a label hides what becomes of them.

The class of a row may be the same in every company that was tried and another one in the next; the scores differ at
once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx

from enginehouse.contract.errors import ExportFailed
from enginehouse.contract.tensors import Tensors
from enginehouse_build.reference.company import joined
from enginehouse_build.reference.crowds import MOST_ROWS
from enginehouse_build.reference.onnx import plain_session
from enginehouse_build.reference.proof import picked, prove_company
from enginehouse_build.reference.strangers import UNKNOWN, Door

_FLOATS = frozenset((onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE))


def prove_scores(
    proto: onnx.ModelProto,
    samples: Tensors,
    folder: Path,
    threads: int = 0,
    door: Door = UNKNOWN,
    max_rows: int = MOST_ROWS,
) -> None:
    """Ask `proto` for the floats that its whole numbers and texts are decided by, for rows alone and in company.

    Nothing is asked of a model all of whose outputs are floats. Raises ExportFailed naming a tensor whose rows depend
    on each other; `folder` holds the file of the proof meanwhile.
    """
    names = scores_of(proto)
    if not names:
        return
    path = folder / "scores.onnx"
    onnx.save(opened(proto, names), path)
    try:
        ask = plain_session(path, threads)
    finally:
        path.unlink()
    rows = picked(samples)
    # Scores without a row for each row (a bias, a tensor of time first) say nothing about company.
    first, together = ask(rows[0]), ask(joined(rows))
    kept = [
        name
        for name, array in first.items()
        if array.ndim and array.size and len(array) == 1 and len(together[name]) == len(rows)
    ]
    if not kept:
        return

    def run(inputs: Tensors) -> Tensors:
        answer = ask(inputs)
        return {name: answer[name] for name in kept}

    answers: Sequence[Tensors] = [run(row) for row in rows]
    try:
        prove_company(run, rows, answers, run, samples, door, max_rows)
    except ExportFailed as error:
        raise ExportFailed(f"of the scores that a label or another whole number is taken from: {error}") from error


def opened(proto: onnx.ModelProto, names: Mapping[str, int]) -> onnx.ModelProto:
    """A copy of `proto` whose outputs are the tensors `names`, each of that TensorProto.DataType."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    del copy.graph.output[:]
    copy.graph.output.extend(onnx.helper.make_tensor_value_info(name, kind, None) for name, kind in names.items())
    return copy


def scores_of(proto: onnx.ModelProto) -> dict[str, int]:
    """Name and type of the float tensors nearest to each output that is no float."""
    try:
        graph = onnx.shape_inference.infer_shapes(proto).graph
    except Exception:
        return {}
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.value_info, *graph.output)}
    makers = {name: node for node in graph.node for name in node.output}
    asked = [output.name for output in graph.output if types[output.name] not in _FLOATS]
    seen, found = set(asked), {}
    while asked:
        node = makers.get(asked.pop())
        for name in node.input if node is not None else ():
            if name in seen:
                continue
            seen.add(name)
            if types.get(name) in _FLOATS and name in makers:
                found[name] = types[name]
            else:
                asked.append(name)
    return found
