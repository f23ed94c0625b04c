"""Which values an input may hold because the graph looks them up in a table.

Engines differ beyond a table's ends: ONNX Runtime refuses, OpenVINO answers zeros, TensorRT reads whatever is there. So
the range is part of the signature, and checked before any engine is asked.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice

import numpy as np
import onnx

from enginehouse.contract.manifest import Axis
from enginehouse.contract.tensors import Domain, Signature, Tensors, TensorSpec
from enginehouse_build.inputs.extents import independent, resized

_LOOKUPS = ("Gather", "GatherElements", "GatherND")
#: What hands on every element of its first input, and nothing else.
_PATH = ("Identity", "Unsqueeze", "Squeeze", "Reshape", "Flatten", "Transpose")
#: Indices are of these types. Any other cast on the way (to a float, a byte, a bool) may make a legal index of a value
#: that is none.
_INDICES = (onnx.TensorProto.INT32, onnx.TensorProto.INT64)
_WHOLE_NUMBERS = (
    *(onnx.TensorProto.INT8, onnx.TensorProto.INT16, *_INDICES),
    *(onnx.TensorProto.UINT8, onnx.TensorProto.UINT16, onnx.TensorProto.UINT32, onnx.TensorProto.UINT64),
)
#: What a module says of a number that is none of its classes or places.
_OUT_OF_RANGE = re.compile(r"index|indices|class|out of (range|bounds)", re.IGNORECASE)
#: Seconds that asking a module for what it refuses may take for all inputs, and the places of a row that are asked.
_SECONDS, _PLACES = 10.0, 6
#: Rows of the samples that it is asked with, and how many are tried for that where it refuses some.
_ROWS, _TRIED = 4, 32


def domains_of(proto: onnx.ModelProto) -> dict[str, Domain]:
    """For each input of whole numbers that indexes constant tables: the values that are in all of them.

    Followed are Gather, GatherElements and GatherND of the main graph that an output depends on, whose indices are the
    input itself but for its shape and a cast to int32 or int64. Of GatherND, whose indices are several numbers each,
    the longest of the dimensions they index counts: a value beyond it is in no table, whichever number it is. So is one
    beyond 32 bits where the graph casts to int32, although ONNX Runtime would look up what the cast leaves of it.
    """
    graph = proto.graph
    tables = _tables(graph)
    # Tensor -> the graph input whose elements it has, all of them and no others.
    origins = {
        value.name: value.name
        for value in graph.input
        if value.name not in tables and value.type.tensor_type.elem_type in _WHOLE_NUMBERS
    }
    found: dict[str, Domain] = {}
    used = _used(graph)
    # The format has nodes come after what they read.
    for node in graph.node:
        if not used & set(node.output) or node.domain not in ("", "ai.onnx"):
            continue
        if _hands_on(node) and node.input[0] in origins:
            origins[node.output[0]] = origins[node.input[0]]
        elif node.op_type in _LOOKUPS and node.input[0] in tables and node.input[1] in origins:
            extent = _extent(node, tables[node.input[0]])
            name = origins[node.input[1]]
            # A table without rows takes no value at all: such a model cannot be asked anything.
            if extent > 0 and (name not in found or found[name].high > extent):
                found[name] = Domain(-extent, extent)
    return found


def without_refused(signature: Signature, source: Callable[[Tensors], object], samples: Tensors) -> Signature:
    """`signature` without the negative numbers of domains that the `source` refuses.

    ONNX counts them from the end of a table, and so does indexing in torch; an embedding of torch raises.
    """

    request = {name: array[:1] if signature.batched else array for name, array in samples.items()}
    # Samples that have other values are refused by what is found here.
    request |= {
        spec.name: np.clip(request[spec.name], 0, min(spec.domain.high - 1, np.iinfo(spec.dtype).max))
        for spec in signature.inputs
        if spec.domain
    }

    def narrowed(spec: TensorSpec) -> TensorSpec:
        if spec.domain is None or spec.domain.low >= 0 or spec.dtype.kind != "i" or not request[spec.name].size:
            return spec
        if _refuses(source, request, spec.name, 0) or not _refuses(source, request, spec.name, -1):
            return spec
        return replace(spec, domain=Domain(0, spec.domain.high))

    return replace(signature, inputs=tuple(narrowed(spec) for spec in signature.inputs))


def with_refusals(
    signature: Signature, source: Callable[[Tensors], object], samples: Tensors, axes: Sequence[Axis], most: int
) -> Signature:
    """`signature` with domains for inputs of whole numbers of which the module `source` takes a range only.

    No graph shows the classes of a one-hot, or places in another input. The module is asked with ever larger numbers in
    the place of one, in rows that it takes as they are. A domain it is where both ends are refused as out of range, the
    same in several rows and places, and at the ends of all `axes`. No number beyond `most` is asked, of either sign: it
    may become a size.
    """
    if all(spec.domain is not None or spec.dtype.kind not in "iu" for spec in signature.inputs):
        return signature
    until = time.monotonic() + _SECONDS
    count = min((len(array) for array in samples.values()), default=0) if signature.batched else 0

    def taken(request: Tensors) -> bool:
        try:
            source(request)
        except Exception:
            # A module may raise anything.
            return False
        return True

    # Rows of different kinds first; where one is refused, whatever others it takes.
    places = dict.fromkeys((0, count // 3, 2 * count // 3, count - 1, *range(min(count, _TRIED))))
    picked = [slice(at, at + 1) for at in places] if count else [slice(None)]
    rows = ({name: array[part] for name, array in samples.items()} for part in picked)
    requests = [*islice(filter(taken, rows), _ROWS)]
    if not requests:
        return signature
    requests += [resized(requests[0], axis, size, axes) for axis in independent(axes) for size in {axis.min, axis.max}]

    def asked(spec: TensorSpec) -> TensorSpec:
        if spec.domain is not None or spec.dtype.kind not in "iu" or not all(r[spec.name].size for r in requests):
            return spec
        # What is added to a number may be another input.
        others = {name: np.zeros_like(array) for name, array in requests[0].items() if array.dtype.kind in "iub"}
        beside = [{**requests[0], **others, spec.name: requests[0][spec.name]}] if len(others) > 1 else []
        try:
            return replace(spec, domain=_taken(source, [*requests, *filter(taken, beside)], spec.name, most, until))
        except TimeoutError:
            return spec

    return replace(signature, inputs=tuple(asked(spec) for spec in signature.inputs))


def _taken(
    source: Callable[[Tensors], object], requests: Sequence[Tensors], name: str, most: int, until: float
) -> Domain | None:
    """The range that `source` takes in all `requests`; None where it has none. Raises TimeoutError."""

    def out_of_range(value: int, request: Tensors = requests[0], place: int = 0) -> bool:
        if time.monotonic() > until:
            raise TimeoutError
        changed = np.array(request[name])
        changed.flat[place] = value
        try:
            source({**request, name: changed})
        except Exception as error:
            # Whatever else it may be, such as too little memory, says nothing about others.
            return isinstance(error, IndexError | RuntimeError) and bool(_OUT_OF_RANGE.search(str(error)))
        return False

    first = requests[0][name]
    known, most = int(first.flat[0]), min(most, int(np.iinfo(first.dtype).max))
    signed = first.dtype.kind == "i"
    if (
        not -most < known < most
        or out_of_range(known)
        or not out_of_range(most)
        or (signed and not out_of_range(-most))
    ):
        return None
    high = _last(known, 1, out_of_range) + 1
    low = _last(known, -1, out_of_range) if signed else 0
    for request in requests:
        size = request[name].size
        for place in sorted({int(at) for at in np.linspace(0, size - 1, min(size, _PLACES))}):
            inside = out_of_range(high - 1, request, place) or out_of_range(low, request, place)
            if inside or not out_of_range(high, request, place):
                return None
            if signed and not out_of_range(low - 1, request, place):
                return None
    return Domain(low, high)


def _last(known: int, side: int, refused: Callable[[int], bool]) -> int:
    """The last number from `known` on to one `side` that is not refused, of which there is one."""
    step = 1
    while not refused(known + side * step):
        known += side * step
        step *= 2
    while step > 1:
        half = step // 2
        if refused(known + side * half):
            step = half
        else:
            known, step = known + side * half, step - half
    return known


def _refuses(source: Callable[[Tensors], object], request: Tensors, name: str, value: int) -> bool:
    """Whether `source` raises for the `request` with `value` as the first number of its input `name`."""
    changed = np.array(request[name])
    changed.flat[0] = value
    try:
        source({**request, name: changed})
    except Exception:
        # A module may raise anything.
        return True
    return False


def _hands_on(node: onnx.NodeProto) -> bool:
    if node.op_type == "Cast":
        return _attribute(node, "to", 0) in _INDICES
    return node.op_type in _PATH


def _extent(node: onnx.NodeProto, shape: tuple[int, ...]) -> int:
    """The length of the table, or of its longest dimension where several are indexed."""
    if node.op_type == "GatherND":
        return max(shape[_attribute(node, "batch_dims", 0) :], default=0)
    return shape[_attribute(node, "axis", 0)] if shape else 0


def _attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == name), default)


def _tables(graph: onnx.GraphProto) -> Mapping[str, tuple[int, ...]]:
    """Shapes of the constants: initializers, Constant nodes, and the copies that exporters make of shared weights."""
    tables = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.name == "value":
                    tables[node.output[0]] = tuple(attribute.t.dims)
        elif node.op_type == "Identity" and node.input[0] in tables:
            tables[node.output[0]] = tables[node.input[0]]
    return tables


def _used(graph: onnx.GraphProto) -> set[str]:
    """Tensors that an output depends on. Engines drop the rest, with whatever it would have refused."""
    used = {output.name for output in graph.output}
    for node in reversed(graph.node):
        if used & set(node.output):
            used |= set(_reads([node]))
    return used


def _reads(nodes: Iterable[onnx.NodeProto]) -> Iterator[str]:
    for node in nodes:
        yield from node.input
        for attribute in node.attribute:
            for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _reads(graph.node)
                yield from (output.name for output in graph.output)
