"""What every fp32 ONNX reference goes through: its signature read, its metadata stripped, loaded in the runtime."""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx

from enginehouse.contract.errors import ExportFailed, InvalidInput
from enginehouse.contract.tensors import Signature, Tensors, TensorSpec, datatype
from enginehouse_build.graph.division import guard_divisions
from enginehouse_build.graph.extremes import exact_extremes
from enginehouse_build.inputs.last_words import telling
from enginehouse_build.reference.domains import domains_of

#: How ONNX Runtime says in which node it failed, and with which class of error.
_AT_NODE = re.compile(r"Non-zero status code returned while running (\w+) node\. ?Name:'([^']*)' Status Message: ?")
_STATUS = re.compile(r"\[ONNXRuntimeError\] : \d+ : \w+ : ")

Run: TypeAlias = Callable[[Tensors], dict[str, np.ndarray]]

#: One row is what exporters specialise on, two is what the export itself saw, five is neither.
PROOF_ROWS = (1, 2, 5)
#: What fixes a batch in a model that was meant to have a free one.
CAUSES = "int(x.shape[0]), a literal size in reshape/view/expand, or a tensor made for one batch size"
#: The file and signature in ONNX Runtime that its messages begin with, which tell a user nothing and fill lines.
_WHERE_IN_RUNTIME = re.compile(r"\s?/onnxruntime_src/\S+:\d+ .*?\)(?: const)? ")


def finish(proto: onnx.ModelProto, path: Path, batched: bool) -> Signature:
    """Make `proto` what everything is made of: save it to `path` and return its signature.

    It loses its writer's notes, and divisions and extremes that ONNX Runtime does not compute are written otherwise.
    Raises ExportFailed for tensors that cannot be served, and for a fixed dim 0 when `batched`.
    """
    _strip_metadata(proto)
    guard_divisions(proto)
    exact_extremes(proto)
    signature = signature_of(proto, batched)
    if batched:
        check_batch(signature, of_no_input(proto))
    onnx.save(proto, path)
    return signature


def plain_session(path: Path, threads: int = 0) -> Run:
    """The file at `path` in ONNX Runtime without fusions: not the serving engine, which is what is being judged.

    Text goes in as str or bytes and comes out as bytes, as with the engines. `threads` 0 is the runtime's own choice.
    Raises ExportFailed with the runtime's reason.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        with telling(f"ONNX Runtime loaded {path.name} (graph optimisation)"):
            session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ExportFailed(f"ONNX Runtime cannot load {path.name}: {reason(error)}") from error
    names = [output.name for output in session.get_outputs()]

    def run(inputs: Tensors) -> dict[str, np.ndarray]:
        answers = session.run(names, {name: _words(array) for name, array in inputs.items()})
        return {name: _encoded(answer) for name, answer in zip(names, answers, strict=True)}

    return run


def one_by_one(run: Run) -> Run:
    """A model that takes one row, asked for as many as there are."""

    def each(inputs: Tensors) -> dict[str, np.ndarray]:
        count = len(next(iter(inputs.values())))
        answers = [run({name: array[row : row + 1] for name, array in inputs.items()}) for row in range(count)]
        return {name: np.concatenate([answer[name] for answer in answers]) for name in answers[0]}

    return each


def _words(array: np.ndarray) -> np.ndarray:
    # ONNX Runtime takes bytes for their repr.
    if not array.dtype.hasobject:
        return array
    words = [item.decode() if isinstance(item, bytes) else item for item in array.ravel().tolist()]
    return np.array(words, dtype=object).reshape(array.shape)


def _encoded(answer: np.ndarray) -> np.ndarray:
    if not answer.dtype.hasobject:
        return answer
    return np.array([str(item).encode() for item in answer.ravel()], dtype=object).reshape(answer.shape)


def reason(error: Exception) -> str:
    """What is wrong, out of an exporter's or runtime's long message: about 400 characters at most, both ends kept."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    text = _WHERE_IN_RUNTIME.sub(" ", text)
    text = _STATUS.sub("", _AT_NODE.sub(r"node '\2' (\1): ", text))
    _, marker, summary = text.partition("## Exception summary")
    lines = [line.strip() for line in (summary if marker else text).splitlines()]
    found = next((line for line in lines if line), type(error).__name__)
    if marker:
        where = [" ".join(pair) for pair in _calls(lines)]
        found += f" (at {where[-1]})" if where else ""
    # A message that does not fit says what is wrong first or last.
    return found if len(found) <= 400 else f"{found[:240]} ... {found[-160:]}"


def of_no_input(proto: onnx.ModelProto) -> frozenset[str]:
    """Names of what is the same for every request: weights, and what is made of nothing else."""
    known = {tensor.name for tensor in proto.graph.initializer} | {
        tensor.values.name for tensor in proto.graph.sparse_initializer
    }
    for node in proto.graph.node:
        # A body may take what the node does not list.
        has_body = any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute)
        if not has_body and all(name in known or not name for name in node.input):
            known.update(node.output)
    return frozenset(known)


def check_batch(signature: Signature, of_no_input: Container[str] = ()) -> None:
    """Raises ExportFailed for the first tensor whose dim 0 is not free."""
    for spec in signature.outputs:
        if spec.name in of_no_input:
            raise ExportFailed(
                f"output {spec.name!r} is the same for every request: it is an initializer of the file, or made of "
                "nothing but these, and has no row for each of a batch; take it out of the outputs, or build with "
                "--no-batch"
            )
    for what, specs in (("input", signature.inputs), ("output", signature.outputs)):
        for spec in specs:
            if not spec.shape:
                raise ExportFailed(
                    f"{what} {spec.name!r} is a scalar: it has no batch dimension; build with --no-batch"
                )
            if spec.shape[0] is not None:
                raise ExportFailed(
                    f"{what} {spec.name!r} has a fixed batch: dim 0 of {list(spec.shape)} is {spec.shape[0]}; "
                    f"usual causes: {CAUSES}; or build with --no-batch"
                )


def signature_of(proto: onnx.ModelProto, batched: bool) -> Signature:
    """Names, dtypes, shapes and domains as the file has them.

    Raises ExportFailed for what is no tensor that can be served.
    """
    domains = domains_of(proto)
    inputs = tuple(replace(spec, domain=domains.get(spec.name)) for spec in inputs_of(proto))
    outputs = tuple(_spec("output", value, _maker(proto, value.name)) for value in proto.graph.output)
    if not inputs or not outputs:
        raise ExportFailed(
            f"the model has {len(inputs)} inputs and {len(outputs)} outputs; it needs at least one of each"
        )
    return Signature(inputs, outputs, batched)


def inputs_of(proto: onnx.ModelProto) -> tuple[TensorSpec, ...]:
    """The inputs that are not weights. Raises ExportFailed as `signature_of` does."""
    constants = {tensor.name for tensor in proto.graph.initializer}
    return tuple(_spec("input", value) for value in proto.graph.input if value.name not in constants)


def label(node: onnx.NodeProto) -> str:
    """How messages name `node`: by its name, or by its output where the writer gave it none."""
    op = f"{node.domain}::{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type
    if node.name:
        return f"node {node.name!r} ({op})"
    return f"the node ({op}) that makes {next(filter(None, node.output), '')!r}"


def _maker(proto: onnx.ModelProto, output: str) -> str:
    return next((f", made by {label(node)}," for node in proto.graph.node if output in node.output), "")


def _spec(what: str, value: onnx.ValueInfoProto, maker: str = "") -> TensorSpec:
    if not value.name or not value.type.HasField("tensor_type"):
        kind = (value.type.WhichOneof("value") or "unknown type").removesuffix("_type").replace("_", " ")
        raise ExportFailed(f"{what} {value.name!r}{maker} is no named tensor but a {kind}; only tensors can be served")
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        raise ExportFailed(
            f"{what} {value.name!r}{maker} has no known number of dimensions; give it a shape in the ONNX file"
        )
    if tensor.elem_type == onnx.TensorProto.BFLOAT16:
        raise ExportFailed(
            f"{what} {value.name!r}{maker} is bfloat16, which ONNX Runtime neither takes nor gives in a request; cast "
            f"it in the file, so that the {what} is FLOAT"
        )
    shape = tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim)
    try:
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
        datatype(dtype)
    except (InvalidInput, KeyError) as error:
        raise ExportFailed(f"{what} {value.name!r}{maker}: {error}") from None
    return TensorSpec(value.name, dtype, shape)


def _strip_metadata(proto: onnx.ModelProto) -> None:
    """Drop what the exporter notes on every node: stack traces and source paths of the machine it ran on."""
    proto.doc_string = ""
    del proto.metadata_props[:]
    graphs: list[Any] = [proto.graph, *proto.functions]
    while graphs:
        graph = graphs.pop()
        for record in (graph, *graph.node, *graph.value_info, *getattr(graph, "initializer", ())):
            record.doc_string = ""
            del record.metadata_props[:]
        for record in (*graph.input, *graph.output):
            # Functions list their inputs and outputs by name only.
            if isinstance(record, onnx.ValueInfoProto):
                record.doc_string = ""
                del record.metadata_props[:]
        for node in graph.node:
            for attribute in node.attribute:
                graphs.extend([attribute.g] if attribute.HasField("g") else [])
                graphs.extend(attribute.graphs)


def _calls(lines: Sequence[str]) -> list[tuple[str, str]]:
    return [(line, lines[at + 1]) for at, line in enumerate(lines[:-1]) if line.startswith("File ")]
