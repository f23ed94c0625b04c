"""Torch to ONNX: the module exported as the fp32 reference, with a free batch dimension."""

from __future__ import annotations

import contextlib
import io
import logging
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from onnxscript import opset20 as op

from enginehouse.contract.errors import ExportFailed
from enginehouse.contract.signature_record import parts_of
from enginehouse.contract.tensors import Signature
from enginehouse_build.graph.compose import rename
from enginehouse_build.graph.tidy import tidy
from enginehouse_build.inputs.recipe import AxisRange
from enginehouse_build.inputs.source import TorchModel
from enginehouse_build.reference.branches import ROWS, Branch, branches_of
from enginehouse_build.reference.module_faults import refuse_unservable
from enginehouse_build.reference.onnx import PROOF_ROWS, finish, reason

#: 17 silently becomes 18; from 23 on the exporter emits `Attention`, which TensorRT-RTX cannot build in fp32.
OPSET = 20
#: The exporter does not see that a name it is given is already that of a tensor inside ("embedding", say).
_PLACEHOLDER = "enginehouse/"
#: What the exporter calls the dimension of rows.
_BATCH = "batch"


def export(
    model: TorchModel, path: Path, *, batched: bool, max_batch: int, ranges: Mapping[str, AxisRange]
) -> tuple[Signature, tuple[Branch, ...]]:
    """Write `model` as ONNX to `path`; dim 0 of every input and output is free when `batched`, and so are its axes.

    With its signature come the conditions on extents under which what was exported is what the module does. Raises
    ExportFailed with the exporter's reason, or naming the tensor whose batch dimension is baked in, the buffer that the
    module changes, or the line at which it draws random numbers or mixes the rows of a batch.
    """
    examples = tuple(model.inputs.values())
    if batched:
        examples = tuple(_two_rows(name, tensor) for name, tensor in model.inputs.items())
    shapes = _free_dimensions(model, ranges, max(max_batch, *PROOF_ROWS) if batched else None)
    try:
        with _quiet():
            program = torch.onnx.export(
                model.module,
                examples,
                dynamo=True,
                opset_version=OPSET,
                dynamic_shapes=shapes if any(shapes) else None,
                input_names=[f"{_PLACEHOLDER}{name}" for name in model.inputs],
                output_names=[f"{_PLACEHOLDER}{name}" for name in model.outputs],
                verbose=False,
                optimize=False,
                custom_translation_table=_TRANSLATIONS,
            )
            if program is None:
                raise ExportFailed("torch's exporter returned nothing")
            if program.exported_program is not None:
                refuse_unservable(program.exported_program, batched)
            # Passing the file to `export` itself writes weights to a second file even for small models.
            tidy(program.model)
            program.save(path, external_data=False)
            proto = onnx.load(path)
    except ExportFailed:
        raise
    except Exception as error:
        _refuse_captured(model, examples, shapes, batched)
        raise ExportFailed(f"torch cannot export the module: {reason(error)}") from error
    _take_names(proto, [*model.inputs, *model.outputs])
    return finish(proto, path, batched), _branches(model, examples, shapes, batched)


def _branches(
    model: TorchModel, examples: tuple[Any, ...], shapes: tuple[Any, ...], batched: bool
) -> tuple[Branch, ...]:
    # The exporter has conditions checked when the module runs, and leaves the checks out of what it writes.
    if not any(shapes):
        return ()
    names = {
        (at, dim): axis for at, name in enumerate(model.inputs) for dim, axis in model.source.axes.get(name, {}).items()
    }
    if batched:
        names |= {(at, 0): ROWS for at in range(len(examples))}
    with _quiet():
        return branches_of(model.module, examples, shapes, names)


def _refuse_captured(model: TorchModel, examples: tuple[Any, ...], shapes: tuple[Any, ...], batched: bool) -> None:
    """What has no ONNX operator may be what cannot be served anyway, and is then named better than by its operator.

    Raises ExportFailed as `refuse_unservable` does.
    """
    with _quiet():
        try:
            program = torch.export.export(model.module, examples, dynamic_shapes=shapes if any(shapes) else None)
        except Exception:
            # It cannot even be captured: the exporter has said why.
            return
    refuse_unservable(program, batched)


def _take_names(proto: onnx.ModelProto, names: Sequence[str]) -> None:
    """Give the inputs and outputs their `names` in the place of the placeholders they were exported with."""
    graph = proto.graph
    for name in names:
        rename(graph, name, f"inner/{name}")
        rename(graph, _PLACEHOLDER + name, name)
        for value in (*graph.input, *graph.output, *graph.value_info):
            if value.name == _PLACEHOLDER + name:
                value.name = name
            elif value.name == name:
                value.name = f"inner/{name}"


def _free_dimensions(
    model: TorchModel, ranges: Mapping[str, AxisRange], max_batch: int | None
) -> tuple[dict[int, Any], ...]:
    """What torch.export takes for each input: its free dimensions, named; dim 0 is the batch unless there is none."""
    axes = model.source.axes
    if unknown := sorted(axes.keys() - model.inputs.keys()):
        raise ExportFailed(f"axes name the input {unknown[0]!r}; the inputs are {', '.join(model.inputs)}")
    names = {name for dims in axes.values() for name in dims.values()}
    if max_batch is not None and _BATCH in names:
        raise ExportFailed(
            f"an axis is called {_BATCH!r}, as dimension 0 of each input is; name it otherwise in ModelSource(axes=...)"
        )
    # torch finds out by itself what a sum of others is.
    dims: dict[str, Any] = {name: torch.export.Dim.AUTO for name in names if parts_of(name, names)}
    if odd := sorted(name for name in names - dims.keys() if not name.isidentifier()):
        raise ExportFailed(
            f"axis {odd[0]!r} is no name that torch takes: write letters, digits and '_', or a sum of other axes"
        )
    if missing := sorted(names - dims.keys() - ranges.keys()):
        raise ExportFailed(f"axis {missing[0]!r} has no range; give ModelSource(ranges=...) or --axis NAME=MIN:OPT:MAX")
    for name in names - dims.keys():
        dims[name] = torch.export.Dim(name, min=ranges[name].min, max=ranges[name].max)
    batch = {0: torch.export.Dim(_BATCH, min=1, max=max_batch)} if max_batch is not None else {}
    return tuple(batch | {dim: dims[axis] for dim, axis in axes.get(name, {}).items()} for name in model.inputs)


def _two_rows(name: str, tensor: torch.Tensor) -> torch.Tensor:
    # torch.export specialises on sizes 0 and 1, so the example must have two rows at least.
    if tensor.dim() == 0:
        raise ExportFailed(f"example input {name!r} is a scalar: it has no batch dimension; build with --no-batch")
    return tensor[:2] if len(tensor) >= 2 else torch.cat([tensor, tensor])


def _log_sigmoid(x: Any) -> Any:
    # The exporter writes the logarithm of a sigmoid, which is 0 from -104 on.
    return op.Sub(op.Min(x, op.CastLike(0.0, x)), _log1p_exp_of_minus(op.Abs(x)))


def _logaddexp(one: Any, other: Any) -> Any:
    # The exporter writes the exponentials, which are infinite from 89 on. Of two infinities there is no difference.
    apart = op.Where(op.Equal(one, other), op.CastLike(0.0, one), op.Abs(op.Sub(one, other)))
    return op.Add(op.Max(one, other), _log1p_exp_of_minus(apart))


def _log1p_exp_of_minus(x: Any) -> Any:
    """log(1 + exp(-x)) of what is not negative, exact for large ones too; ONNX has no log1p."""
    small = op.Exp(op.Neg(x))
    two = op.CastLike(2.0, x)
    return op.Mul(two, op.Atanh(op.Div(small, op.Add(small, two))))


def _atan2(y: Any, x: Any) -> Any:
    # The exporter takes the half turn of a zero for that of a negative number.
    turn = op.CastLike(math.pi, y)
    both_zero = op.And(op.Equal(x, op.CastLike(0.0, x)), op.Equal(y, op.CastLike(0.0, y)))
    slope = op.Where(both_zero, y, op.Atan(op.Div(y, x)))
    return op.Where(_negative(x), op.Where(_negative(y), op.Sub(slope, turn), op.Add(slope, turn)), slope)


def _negative(x: Any) -> Any:
    """Whether it is below 0 or -0, of which only the reciprocal shows the sign."""
    zero = op.CastLike(0.0, x)
    return op.Or(op.Less(x, zero), op.Less(op.Reciprocal(x), zero))


#: What the exporter writes otherwise than torch computes it.
_TRANSLATIONS: Any = {
    torch.ops.aten.log_sigmoid.default: _log_sigmoid,
    torch.ops.aten.logaddexp.default: _logaddexp,
    torch.ops.aten.atan2.default: _atan2,
}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter logs, warns and prints graphs even when all is well; what matters comes as an exception."""
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
