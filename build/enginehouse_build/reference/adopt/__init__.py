"""Any ONNX file adopted as the fp32 reference: checked, refused with node and reason, or made fit to be served."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx.inliner
import onnx.version_converter
from onnx.external_data_helper import load_external_data_for_model

from enginehouse.contract.errors import ExportFailed
from enginehouse.contract.magic import seen_in
from enginehouse.contract.tensors import Signature, Tensors
from enginehouse_build.reference.adopt.batch import make_dynamic
from enginehouse_build.reference.adopt.refusals import opset_of, outside_tensors, refuse_unknown, refuse_unservable
from enginehouse_build.reference.adopt.shapes import dims, infer, is_tensor, name_free_dims, set_rank
from enginehouse_build.reference.adopt.trial import agree, answer, answers, load_proto, unvaried
from enginehouse_build.reference.crowds import MOST_ROWS
from enginehouse_build.reference.onnx import (
    PROOF_ROWS,
    Run,
    check_batch,
    finish,
    inputs_of,
    of_no_input,
    plain_session,
    reason,
    signature_of,
)
from enginehouse_build.reference.scores import opened, scores_of

#: Older files lack what quantization and TensorRT ask for; 13 is the first opset with per-channel scales.
OLDEST_OPSET = 13
#: All converters know it well, and no operator changed its meaning on the way there from 13.
TARGET_OPSET = 17
_IR_OF_TARGET = 8
#: What everything reads that a file could be converted to: for messages.
_EASY_OPSET = 20
_EASY_IR = 10
#: From this version of the file format on, weights need not be listed among the inputs.
_IR_WEIGHTS_APART = 4
#: Made-up requests that a conversion is compared on, each on another scale.
_TRIALS = 5
#: How ONNX Runtime says which opset it knows.
_NEWEST = re.compile(r"support for domain ai\.onnx is till opset (\d+)")
#: protobuf's limit for one message.
_LARGEST = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Adopted:
    """`signature` is not batched when the model had to keep its batch of 1.

    `remarks` say what was changed, for the manifest. `dim_names` has, for each input, the symbol of every free
    dimension and None for every fixed one. `converted` is the conversion that was made of the graph, "" for none, and
    `unvaried` are the outputs that were one value all over in its trial, so that samples have to show more of them.
    `freed` says whether the original takes one row only.
    """

    signature: Signature
    remarks: tuple[str, ...]
    dim_names: dict[str, tuple[str | None, ...]]
    converted: str = ""
    unvaried: tuple[str, ...] = ()
    freed: bool = False


def adopt(source: Path, path: Path, *, batched: bool, as_it_is: str = "", max_rows: int = MOST_ROWS) -> Adopted:
    """Write the model of the ONNX file `source` to `path`, as one self-contained file fit to be served.

    Its answers are those of `source` in ONNX Runtime, tried on made-up inputs wherever something was rewritten. With
    `batched`, a model exported for one row is made to take any number of rows if that can be proven, for up to
    `max_rows` at once, and otherwise keeps its batch of 1. `as_it_is` is the reason for which no conversion is made.
    Raises ExportFailed for what is no valid model, larger than 2 GiB, or cannot be served, naming the node or tensor.
    """
    proto, remarks = _read(source)
    original = _loaded(source, proto)
    name_free_dims(proto.graph)
    proto = _with_outputs(proto, original)
    # Only now: it wants a shape for every output, and names neither the node nor the way out of what was refused above.
    remarks += _checked(proto)
    converted, silent = _conversion_of(proto), tuple[str, ...]()
    if converted and as_it_is:
        remarks.append(f"not {converted}, because that failed: {as_it_is}")
        converted = ""
    elif converted:
        try:
            proto, silent = _modern(proto, original, path.parent)
            remarks.append(f"{converted}: agrees with the original")
        except Exception as error:
            # The converter raises classes of its own.
            remarks.append(f"not {converted}, because that failed: {reason(error)}")
            converted = ""
    freed = False
    signature = signature_of(proto, batched)
    if batched and _says_one(signature):
        try:
            proto = make_dynamic(proto, signature, original, path.parent, max_rows)
        except ExportFailed as error:
            if not any(spec.shape[:1] == (1,) for spec in signature.inputs):
                check_batch(signature, of_no_input(proto))
            batched = False
            remarks.append(f"served one request at a time, because its batch of 1 cannot be made dynamic: {error}")
        else:
            freed = True
            rows = ", ".join(str(count) for count in PROOF_ROWS)
            remarks.append(f"batch of 1 made dynamic: agrees with the original row by row on {rows} rows")
    signature = finish(proto, path, batched)
    names = {
        value.name: tuple(dim if isinstance(dim, str) else None for dim in dims(value) or ())
        for value in proto.graph.input
    }
    return Adopted(signature, tuple(remarks), names, converted, silent, freed)


def _read(source: Path) -> tuple[onnx.ModelProto, list[str]]:
    """The model with its weights in memory and apart from its inputs, and remarks."""
    remarks: list[str] = []
    try:
        size = source.stat().st_size
        if size <= _LARGEST:
            proto = onnx.load(source, load_external_data=False)
            outside = outside_tensors(proto)
            size += sum(_bytes(weight) for weight in outside)
        if size > _LARGEST:
            raise ExportFailed(
                f"{source} has {size / 2**30:.1f} GiB of weights; one ONNX file holds 2 GiB at most, and OpenVINO and "
                "TensorRT read it as one: export the weights in fp16, or the model in parts"
            )
        if outside:
            load_external_data_for_model(proto, str(source.parent))
            remarks.append(f"{len(outside)} external weights taken into the file")
        inputs_of(proto)
        refuse_unservable(proto)
    except ExportFailed:
        raise
    except Exception as error:
        fault = seen_in(source, ExportFailed(reason(error)))
        raise ExportFailed(f"{source} is not a valid ONNX model: {fault}") from error
    weights = {weight.name for weight in proto.graph.initializer}
    inputs = [value for value in proto.graph.input if value.name not in weights]
    proto.ir_version = max(proto.ir_version, _IR_WEIGHTS_APART)
    if listed := len(proto.graph.input) - len(inputs):
        del proto.graph.input[:]
        proto.graph.input.extend(inputs)
        remarks.append(f"{listed} weights listed as inputs made constants")
    return proto, remarks


def _loaded(source: Path, proto: onnx.ModelProto) -> Run:
    """The file in ONNX Runtime. Raises ExportFailed naming the cause where the file shows it, and the way out."""
    try:
        return plain_session(source)
    except ExportFailed as error:
        refuse_unknown(proto)
        known = _NEWEST.search(str(error))
        if known and opset_of(proto) > int(known[1]):
            raise ExportFailed(
                f"{source} is written in ONNX opset {opset_of(proto)}, and this ONNX Runtime reads up to opset "
                f"{known[1]}: export the model with opset {_EASY_OPSET}"
            ) from None
        way_out = "onnx.checker.check_model(PATH, full_check=True) may name the node"
        if opset_of(proto) > _EASY_OPSET:
            way_out = f"it is written in opset {opset_of(proto)}: export the model with opset {_EASY_OPSET}"
        elif proto.ir_version > _EASY_IR:
            way_out = f"its file format is version {proto.ir_version}: save it with ir_version {_EASY_IR}"
        raise ExportFailed(f"{error}; {way_out}") from None


def _checked(proto: onnx.ModelProto) -> list[str]:
    """A remark where the checker of ONNX finds a fault in a file that ONNX Runtime, the reference, has loaded."""
    try:
        onnx.checker.check_model(proto)
    except Exception as error:
        return [f"the checker of ONNX objects to the file, which ONNX Runtime loads all the same: {reason(error)}"]
    return []


def _bytes(weight: onnx.TensorProto) -> int:
    dtype = onnx.helper.tensor_dtype_to_np_dtype(weight.data_type)
    return int(math.prod(weight.dims) * dtype.itemsize)


def _with_outputs(proto: onnx.ModelProto, original: Run) -> onnx.ModelProto:
    """`proto` with inferred output shapes; a rank that inference cannot tell is read off an answer."""
    inferred = infer(proto)
    del proto.graph.output[:]
    proto.graph.output.extend(inferred.graph.output)
    unknown = [output for output in proto.graph.output if is_tensor(output) and dims(output) is None]
    if unknown:
        _, answers = answer(original, inputs_of(proto), 2, 1)
        for output in unknown:
            set_rank(output, answers[0][output.name].ndim)
    return proto


def _conversion_of(proto: onnx.ModelProto) -> str:
    """In words, what has to be done for `proto` to be read by every converter; "" for nothing."""
    opset = opset_of(proto)
    changes = [f"opset {opset} converted to {TARGET_OPSET}"] if opset < OLDEST_OPSET else []
    changes += [f"{len(proto.functions)} functions written out"] if proto.functions else []
    return " and ".join(changes)


def _modern(proto: onnx.ModelProto, original: Run, folder: Path) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """`proto` without functions and in an opset that every converter knows, which answers as before.

    Compared are the outputs and the scores that whole numbers and text are decided by, on made-up inputs of several
    scales. Also the outputs of which that shows nothing: one value all over, and without scores. Raises ExportFailed
    where it answers otherwise, and whatever the converter does.
    """
    modern = onnx.inliner.inline_local_functions(proto)
    if opset_of(proto) < OLDEST_OPSET:
        modern = onnx.version_converter.convert_version(modern, TARGET_OPSET)
        modern.ir_version = max(modern.ir_version, _IR_OF_TARGET)
    run = load_proto(modern, folder)
    made = {name for node in modern.graph.node for name in node.output}
    scores = {name: kind for name, kind in scores_of(proto).items() if name in made}
    inside = [load_proto(opened(each, scores), folder) for each in (proto, modern)] if scores else []
    shown: list[Tensors] = []
    varied: set[str] = set()
    for requests, wanted in answers(original, inputs_of(proto), 2, _TRIALS):
        for request, want in zip(requests, wanted, strict=True):
            agree(run(request), want, "made-up inputs")
            shown.append(want)
            if inside:
                before, after = (each(request) for each in inside)
                # Another opset may flatten what it makes a share of.
                alike = [name for name, array in before.items() if array.shape == after[name].shape]
                agree(after, {name: before[name] for name in alike}, "made-up inputs, inside")
                varied.update(name for name in alike if np.unique(before[name]).size > 1)
    # Scores that say something stand for what is decided by them.
    return modern, () if scores and varied == set(scores) else tuple(unvaried(shown))


def _says_one(signature: Signature) -> bool:
    return any(spec.shape[:1] == (1,) for spec in signature.inputs + signature.outputs)
