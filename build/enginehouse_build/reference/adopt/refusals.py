"""What cannot be served however it is converted: looked for in an ONNX file before anything runs, named by node."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx
from onnx.external_data_helper import uses_external_data

from enginehouse.contract.errors import ExportFailed
from enginehouse_build.reference.onnx import label

#: Their answers change from call to call (a `seed` only fixes where the sequence starts), so nothing can be verified.
_RANDOM = frozenset(
    ("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike")
)
_KNOWN_DOMAINS = frozenset(("", "ai.onnx", "ai.onnx.ml", "com.microsoft"))
#: From this opset on Dropout is told its mode by an input, before `_DROPOUT_INFERS` by an attribute.
_DROPOUT_ASKS = 12
_DROPOUT_INFERS = 7
#: The same for BatchNormalization.
_NORMALIZATION_ASKS = 14
_NORMALIZATION_INFERS = 7


def refuse_unservable(proto: onnx.ModelProto) -> None:
    """Raises ExportFailed naming the first node that no engine could serve reproducibly, and why."""
    opset = opset_of(proto)
    functions = {(function.domain, function.name) for function in proto.functions}
    bodies: list[onnx.GraphProto | onnx.FunctionProto] = [proto.graph, *proto.functions]
    for body in bodies:
        for node, constants in walk(body, {}):
            reason = None if (node.domain, node.op_type) in functions else _fault(node, constants, opset)
            if reason:
                raise ExportFailed(f"{label(node)} {reason}")


def refuse_unknown(proto: onnx.ModelProto) -> None:
    """Raises ExportFailed naming the first node that ONNX does not know: why the runtime did not load the file.

    Asked only then, because the runtime has some operators in ONNX's domain that ONNX itself has not.
    """
    opset = opset_of(proto)
    functions = {(function.domain, function.name) for function in proto.functions}
    for body in (proto.graph, *proto.functions):
        for node, _ in walk(body, {}):
            if node.domain not in ("", "ai.onnx") or (node.domain, node.op_type) in functions:
                continue
            if not onnx.defs.has(node.op_type, max_inclusive_version=opset):
                raise ExportFailed(
                    f"{label(node)} is no operator of ONNX opset {opset}, and ONNX Runtime has none of its own; export "
                    "the model with an opset that has it, or write it with other operators"
                )


def outside_tensors(proto: onnx.ModelProto) -> list[onnx.TensorProto]:
    """Every tensor whose values are in another file: initializers and Constant nodes, branches and loops included."""
    found: list[onnx.TensorProto] = []
    bodies: list[onnx.GraphProto | onnx.FunctionProto] = [proto.graph, *proto.functions]
    while bodies:
        body = bodies.pop()
        tensors = list(getattr(body, "initializer", ()))
        for node in body.node:
            for attribute in node.attribute:
                tensors += [*([attribute.t] if attribute.HasField("t") else []), *attribute.tensors]
                bodies += [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]
        found += [tensor for tensor in tensors if uses_external_data(tensor)]
    return found


def opset_of(proto: onnx.ModelProto) -> int:
    """Version of the standard operators `proto` is written in."""
    versions = [imported.version for imported in proto.opset_import if imported.domain in ("", "ai.onnx")]
    return versions[0] if versions else 1


def walk(
    body: onnx.GraphProto | onnx.FunctionProto, outer: Mapping[str, np.ndarray]
) -> Iterator[tuple[onnx.NodeProto, Mapping[str, np.ndarray]]]:
    """Every node of `body` and of the branches and loops inside it, with the constants it can see by name."""
    constants = {**outer, **constants_of(body)}
    for node in body.node:
        yield node, constants
        for attribute in node.attribute:
            for inner in [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]:
                yield from walk(inner, constants)


def constants_of(body: onnx.GraphProto | onnx.FunctionProto) -> dict[str, np.ndarray]:
    """The small constants among initializers and Constant nodes: flags, axes and shapes, not weights."""
    tensors = {tensor.name: tensor for tensor in getattr(body, "initializer", ())}
    found: dict[str, np.ndarray] = {}
    for node in body.node:
        if node.op_type != "Constant":
            continue
        for attribute in node.attribute:
            if attribute.name == "value":
                tensors[node.output[0]] = attribute.t
            elif attribute.name in ("value_int", "value_ints"):
                found[node.output[0]] = np.array(onnx.helper.get_attribute_value(attribute), np.int64)
    for name, tensor in tensors.items():
        if len(tensor.dims) <= 1 and sum(tensor.dims) <= 16:
            found[name] = onnx.numpy_helper.to_array(tensor)
    return found


def _fault(node: onnx.NodeProto, constants: Mapping[str, np.ndarray], opset: int) -> str | None:
    domain = node.domain
    if domain.startswith("com.microsoft."):
        return "was made by ONNX Runtime for one kind of processor; give the model as it was before that optimisation"
    if domain not in _KNOWN_DOMAINS:
        return (
            f"is a custom operator: neither ONNX nor ONNX Runtime knows the domain {domain!r}; "
            "write it with standard operators, or define it as a function in the ONNX file"
        )
    if node.op_type in _RANDOM:
        return (
            "draws random numbers, so its answers cannot be reproduced and no artifact verified; "
            "make the random tensor an input of the model"
        )
    if node.op_type == "Dropout" and _drops(node, constants, opset):
        return "is in training mode: it drops values at random; export the model for inference"
    if node.op_type == "BatchNormalization" and _trains(node, opset):
        return (
            "is in training mode: it normalises with the statistics of the batch, so that a row's answer depends on "
            "who shares its batch; export the model for inference (model.eval())"
        )
    return None


def _trains(node: onnx.NodeProto, opset: int) -> bool:
    """Whether a BatchNormalization takes the statistics of the batch instead of those that were learned."""
    given = {attribute.name: attribute.i for attribute in node.attribute}
    if opset >= _NORMALIZATION_ASKS:
        return bool(given.get("training_mode", 0))
    if opset < _NORMALIZATION_INFERS:
        return not given.get("is_test", 0)
    # In between, whoever asks for the statistics as well is training.
    return len([name for name in node.output if name]) > 1


def _drops(node: onnx.NodeProto, constants: Mapping[str, np.ndarray], opset: int) -> bool:
    if opset < _DROPOUT_INFERS:
        return not any(attribute.name == "is_test" and attribute.i for attribute in node.attribute)
    if opset < _DROPOUT_ASKS or len(node.input) < 3 or not node.input[2]:
        return False
    mode = constants.get(node.input[2])
    return mode is None or bool(mode.any())
