"""Made-up rows from everything that the door lets in: what a stranger may send, whatever the samples are.

Samples of photographs all have a white pixel, those of a tokenizer all have one length; a row that depends on the
brightest pixel or the longest text of its batch shows it only beside one that they leave out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, combinations, cycle, islice, product, zip_longest
from typing import Any, TypeAlias

import numpy as np
import onnx
from onnx import numpy_helper

from enginehouse.contract.tensors import Domain, Tensors, TensorSpec
from enginehouse_build.graph.graph import graphs, subgraphs
from enginehouse_build.graph.sizes import sizing

Mark: TypeAlias = int | float | str

#: Constants of the graph that are tried as values, and from which number of elements on one is a weight.
_MARKS, _WEIGHT = 8, 16
#: Marks of an input that are tried beside those of another, and such rows in all.
_CROSSED, _MOST_CROSSED = 5, 56
#: Where an order or an equality with a constant is decided.
_COMPARES = frozenset({"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Min", "Clip", "Where"})
#: A domain of so many values is tried as a whole, in so many rows at most.
_SMALL_DOMAIN, _MOST_ROWS = 1024, 16
#: What may be a size without being too much, where a table has so many rows or the graph names the number.
SMALL_SIZE = 1024
#: How much fainter than the samples floats may be.
_FAINT = 1 / 64


@dataclass(frozen=True, slots=True)
class Door:
    """What requests may hold besides what samples show.

    `domains` are those of inputs that index a table; `marks` are numbers and texts that the graph has as constants, and
    may ask of an input whether it is that; with `sizes` a whole number may become a size, so that no larger ones are
    made up than the samples have.
    """

    domains: Mapping[str, Domain]
    marks: Sequence[Mark]
    sizes: bool

    @classmethod
    def of(cls, proto: onnx.ModelProto, inputs: Sequence[TensorSpec]) -> Door:
        """That of the model `proto`, whose inputs are `inputs`."""
        domains = {spec.name: spec.domain for spec in inputs if spec.domain is not None}
        return cls(domains, _marks(proto), bool(sizing(_flat(proto))))


#: That of a model of which nothing is known.
UNKNOWN = Door({}, (), True)


def strangers(row: Tensors, samples: Tensors, door: Door) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Rows shaped as `row`, the most telling ones first, each with what it is: `zeros in 'x'`.

    `row` itself comes first. All inputs are made up together, then each by itself, the others as in `row`. Each of
    these is there once; the model may refuse any.
    """
    each = {name: list(_kinds(array, samples[name], name, door)) for name, array in row.items() if array.size}
    together: dict[str, dict[str, np.ndarray]] = {}
    for name, kinds in each.items():
        for what, array in kinds:
            together.setdefault(what, {})[name] = array
    jointly = [(f"{what} in all inputs", {**row, **arrays}) for what, arrays in together.items() if len(arrays) > 1]
    alone = [(f"{what} in {name!r}", {**row, name: array}) for name, what, array in _in_turn(each)]
    # Somebody may ask the same twice.
    yield "the same values", dict(row)
    seen = {_key(row)}
    turns = (each for turn in zip_longest(jointly, alone) for each in turn if each is not None)
    for what, made in chain(turns, islice(_crossed(row, samples, door), _MOST_CROSSED)):
        if _key(made) not in seen:
            seen.add(_key(made))
            yield what, made


def _crossed(row: Tensors, samples: Tensors, door: Door) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Marks in one input beside marks in another: a branch may ask for both. Each two inputs have their turn early.

    The other inputs are those of ever other samples: what a branch does with them shows in some company only.
    """
    others = cycle(range(min(map(len, samples.values()))))
    marked = {name: _marked(array, samples[name], name, door)[:_CROSSED] for name, array in row.items() if array.size}
    pairs = [
        [(one, mark, other, beside) for mark, beside in product(marked[one], marked[other])]
        for one, other in combinations(marked, 2)
    ]
    for turn in zip_longest(*pairs):
        for one, mark, other, beside in filter(None, turn):
            filled = {name: np.full_like(row[name], value) for name, value in ((one, mark), (other, beside))}
            at = next(others)
            base = {name: array[at : at + 1] for name, array in samples.items() if array[:1].shape == row[name].shape}
            yield f"{mark!r} in {one!r} and {beside!r} in {other!r}", {**row, **base, **filled}


def _marked(array: np.ndarray, among: np.ndarray, name: str, door: Door) -> list[Any]:
    """The marks that an input may hold."""
    if array.dtype.kind == "b":
        return [False, True]
    if array.dtype.hasobject:
        return [mark for mark in door.marks if isinstance(mark, str)]
    if array.dtype.kind in "iu":
        least, most = _allowed(array.dtype, among, name, door)
        return [number for number in _numbers(door) if least <= number <= most]
    return [mark for mark in door.marks if isinstance(mark, float) and abs(mark) <= _largest(array.dtype)]


def _in_turn(each: Mapping[str, Sequence[tuple[str, np.ndarray]]]) -> Iterator[tuple[str, str, np.ndarray]]:
    """The first of every input, then the second: each input has its turn early."""
    for turn in zip_longest(*each.values()):
        for name, kind in zip(each, turn, strict=True):
            if kind is not None:
                yield name, *kind


def _kinds(array: np.ndarray, among: np.ndarray, name: str, door: Door) -> Iterator[tuple[str, np.ndarray]]:
    if array.dtype.hasobject:
        yield from _texts(array, among, door)
    elif array.dtype.kind == "b":
        yield from _filled(array, [(False, "False"), (True, "True")])
    elif array.dtype.kind in "iu":
        yield from _whole(array, among, name, door)
    else:
        yield from _floats(array, door)


def _whole(array: np.ndarray, among: np.ndarray, name: str, door: Door) -> Iterator[tuple[str, np.ndarray]]:
    low, high = _range(array.dtype, among, door.domains.get(name), sizes=door.sizes)
    extremes = [(0, "zeros"), (high, "the highest values"), (low, "the lowest values"), (1, "ones")]
    marks = [(number, f"{number}s") for number in _numbers(door)]
    # Beside a mark, because it may be asked whether a number is less or not.
    beside = [(value + step, f"{value + step}s") for value, _ in marks[:2] for step in (-1, 1)]
    allowed = [(value, what) for value, what in extremes if low <= value <= high]
    least, most = _allowed(array.dtype, among, name, door)
    allowed += [(value, what) for value, what in (*marks, *beside) if least <= value <= most]
    yield from _filled(array, allowed)
    count = high - low + 1
    if count > _SMALL_DOMAIN:
        exponents = np.random.default_rng(0).uniform(0, np.log2(min(high, 2**62) + 1.0), array.shape)
        # As Python's own numbers: the largest of a float is beyond the type.
        values = np.array([min(int(2.0**exponent), high) for exponent in exponents.ravel()], dtype=object)
        yield "numbers of all sizes", values.reshape(array.shape).astype(array.dtype)
        return
    # Ids from the start of a table are meant more often than those that count from its end.
    order = np.array(sorted(range(low, high + 1), key=lambda value: (value < 0, value)))
    for at in range(min(-(-count // array.size), _MOST_ROWS)):
        places = (at * array.size + np.arange(array.size)) % count
        values = order[places].astype(array.dtype)
        yield f"each number from {values[0]} on", values.reshape(array.shape)


def _numbers(door: Door) -> list[int]:
    """Marks that are whole numbers, also those that one may be compared with after a cast to a float."""
    return list(dict.fromkeys(int(mark) for mark in door.marks if not isinstance(mark, str) and mark == int(mark)))


def _allowed(dtype: np.dtype, among: np.ndarray, name: str, door: Door) -> tuple[int, int]:
    """The least and the largest number that may be asked where the graph names it itself."""
    least, most = _range(dtype, among, door.domains.get(name), sizes=False)
    if door.sizes:
        low, high = _range(dtype, among, door.domains.get(name), sizes=True)
        # What the graph names itself is no size out of the way.
        least, most = max(least, min(low, -SMALL_SIZE)), min(most, max(high, SMALL_SIZE))
    return least, most


def _range(dtype: np.dtype, among: np.ndarray, domain: Domain | None, *, sizes: bool) -> tuple[int, int]:
    """The least and the largest whole number that may be asked."""
    limits = np.iinfo(dtype)
    # The lowest of all is left out: divided by -1 it ends the process.
    low, high = int(max(limits.min, -limits.max)), int(limits.max)
    if domain is not None:
        low, high = max(low, domain.low), min(high, domain.high - 1)
    if sizes and dtype.itemsize > 1 and (domain is None or high > SMALL_SIZE):
        low, high = max(low, min(0, int(among.min()))), min(high, max(1, int(among.max())))
    return low, high


def _floats(array: np.ndarray, door: Door) -> Iterator[tuple[str, np.ndarray]]:
    marks = [(float(mark), f"{mark:g}s") for mark in door.marks if isinstance(mark, float)]
    allowed = [(value, what) for value, what in marks if abs(value) <= _largest(array.dtype)]
    yield "values near zero", (array.astype(np.float64) * _FAINT).astype(array.dtype)
    yield "values of the other sign", -array
    yield from _filled(array, [(0.0, "zeros"), (1.0, "ones"), *allowed[:2]])


def _largest(dtype: np.dtype) -> float:
    return float(np.finfo(dtype).max) if dtype.kind == "f" else 3e38


def _texts(array: np.ndarray, among: np.ndarray, door: Door) -> Iterator[tuple[str, np.ndarray]]:
    marks = [mark for mark in door.marks if isinstance(mark, str)]
    shown = [item.decode() if isinstance(item, bytes) else str(item) for item in among.ravel()[:_MARKS]]
    yield from _filled(array, [(text, repr(text)) for text in dict.fromkeys(("", *marks, *shown))])


def _filled(array: np.ndarray, values: Sequence[tuple[object, str]]) -> Iterator[tuple[str, np.ndarray]]:
    """For each value a row of nothing else, and one whose second half is of it, as padding is."""
    half = array.reshape(array.size).shape[0] // 2 if array.ndim < 2 else array.shape[1] // 2
    for value, what in values:
        yield what, np.full(array.shape, value, dtype=array.dtype)
        padded = array.copy()
        (padded[half:] if array.ndim < 2 else padded[:, half:])[...] = value
        yield f"{what} in the second half", padded


def _key(row: Tensors) -> tuple[object, ...]:
    return tuple(tuple(array.ravel()) if array.dtype.hasobject else array.tobytes() for array in row.values())


def _flat(proto: onnx.ModelProto) -> onnx.ModelProto:
    """`proto` with the nodes of both branches in the place of each If, for `sizing`: a choice alone makes no size."""
    if not any(node.op_type == "If" for node in proto.graph.node):
        return proto
    flat = onnx.ModelProto()
    flat.CopyFrom(proto)
    nodes, found = list(flat.graph.node), list[onnx.NodeProto]()
    while nodes:
        node = nodes.pop(0)
        if node.op_type != "If":
            found.append(node)
            continue
        within = []
        for branch in subgraphs(node):
            flat.graph.initializer.extend(branch.initializer)
            within += branch.node
            within += [
                onnx.helper.make_node("Identity", [value.name], [name])
                for value, name in zip(branch.output, node.output, strict=False)
            ]
        nodes = [*within, *nodes]
    del flat.graph.node[:]
    flat.graph.node.extend(found)
    return flat


def _marks(proto: onnx.ModelProto) -> tuple[Mark, ...]:
    """Small constants of the graph, its branches and functions; first those that something is compared with."""
    # By type as well: 2 and 2.0 are one key.
    compared: dict[tuple[type, Mark], None] = {}
    others: dict[tuple[type, Mark], None] = {}
    for graph in graphs(proto):
        tensors = {tensor.name: tensor for tensor in getattr(graph, "initializer", ())}
        for node in graph.node:
            for attribute in node.attribute if node.op_type == "Constant" else ():
                value = onnx.helper.get_attribute_value(attribute)
                if attribute.name == "value":
                    tensors[node.output[0]] = value
                elif attribute.name != "sparse_value":
                    tensors[node.output[0]] = _tensor_of(value)
        for node in graph.node:
            for name in node.input:
                if name in tensors and int(np.prod(tensors[name].dims)) < _WEIGHT:
                    found = compared if node.op_type in _COMPARES else others
                    found.update(dict.fromkeys((type(item), item) for item in _items(tensors[name])))
    kinds: dict[type, dict[Mark, None]] = {}
    for kind, mark in (*compared, *others):
        kinds.setdefault(kind, {})[mark] = None
    return tuple(mark for marks in kinds.values() for mark in list(marks)[:_MARKS])


def _tensor_of(value: Any) -> onnx.TensorProto:
    array = np.array(value)
    return numpy_helper.from_array(array.astype(object) if array.dtype.kind in "SU" else array)


def _items(tensor: onnx.TensorProto) -> list[Mark]:
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        return []
    items = numpy_helper.to_array(tensor).ravel().tolist()
    kept = (item.decode(errors="replace") if isinstance(item, bytes) else item for item in items)
    return [item for item in kept if isinstance(item, str) or (type(item) in (int, float) and math.isfinite(item))]
