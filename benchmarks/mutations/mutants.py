"""Ways to break a graph, as converters, kernels and people have broken graphs; each has a strength.

Strength 1 is the whole fault. Where a fault is there or not (padding on the wrong side), less is so much of it blended
into the right tensor; where it has a reach (how many ids are shifted, at what company rows mix), less is less of that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from benchmarks.mutations.models import RARE, VOCABULARY, f32, i64


class Graph:
    """A model that is being changed in place: constants by name, and nodes put behind a tensor."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self._graph = proto.graph
        self._made = 0

    def node(self, name: str) -> onnx.NodeProto:
        return next(node for node in self._graph.node if name in (node.name, *node.output))

    def set(self, name: str, **attributes: Any) -> None:
        node = self.node(name)
        kept = [attribute for attribute in node.attribute if attribute.name not in attributes]
        del node.attribute[:]
        node.attribute.extend(kept + [helper.make_attribute(key, value) for key, value in attributes.items()])

    def constants(self) -> list[str]:
        return [tensor.name for tensor in self._graph.initializer]

    def constant(self, name: str) -> np.ndarray:
        found = next(tensor for tensor in self._graph.initializer if tensor.name == name)
        return np.array(numpy_helper.to_array(found))

    def change(self, name: str, values: np.ndarray) -> None:
        found = next(tensor for tensor in self._graph.initializer if tensor.name == name)
        found.CopyFrom(numpy_helper.from_array(values.astype(numpy_helper.to_array(found).dtype), name))

    def behind(self, tensor: str, *steps: tuple[str, list[Any], dict[str, Any]], strength: float = 1.0) -> None:
        """Whoever reads `tensor` reads the last of `steps` instead, blended into it by `strength`.

        A step is operator, inputs and attributes; an input is a tensor, an array, or the number of an earlier step.
        """
        made: list[onnx.NodeProto] = []
        results: list[str] = []

        def add(op: str, inputs: list[Any], attributes: dict[str, Any]) -> None:
            names = [
                results[each] if isinstance(each, int) else self._array(each) if isinstance(each, np.ndarray) else each
                for each in inputs
            ]
            self._made += 1
            results.append(f"broken_{self._made}")
            made.append(helper.make_node(op, names, [results[-1]], f"broken_{self._made}", **attributes))

        for step in steps:
            add(*step)
        if strength < 1:
            add("Sub", [len(results) - 1, tensor], {})
            add("Mul", [len(results) - 1, np.array(strength, f32)], {})
            add("Add", [tensor, len(results) - 1], {})
        for node in self._graph.node:
            node.input[:] = [results[-1] if name == tensor else name for name in node.input]
        nodes = list(self._graph.node)
        at = next((at + 1 for at, node in enumerate(nodes) if tensor in node.output), 0)
        del self._graph.node[:]
        self._graph.node.extend([*nodes[:at], *made, *nodes[at:]])

    def _array(self, values: np.ndarray) -> str:
        self._made += 1
        name = f"constant_{self._made}"
        self._graph.initializer.append(numpy_helper.from_array(values, name))
        return name


@dataclass(frozen=True)
class Mutant:
    """A kind of fault in the model called `model`: `breaking` takes its graph and a strength, and changes the graph."""

    kind: str
    model: str
    breaking: Callable[[Graph, float], None]

    def change(self, strength: float) -> Callable[[Graph], None]:
        """`breaking` by so much."""
        return lambda graph: self.breaking(graph, strength)

    @property
    def name(self) -> str:
        return f"{self.kind}, {self.model}"


def _swapped(values: np.ndarray, axis: int, one: int, other: int, strength: float) -> np.ndarray:
    order = np.arange(values.shape[axis])
    order[[one, other]] = other, one
    return values + strength * (np.take(values, order, axis) - values)


def swap_classes(graph: Graph, strength: float) -> None:
    graph.change("w2", _swapped(graph.constant("w2"), 1, 3, 4, strength))
    graph.change("b2", _swapped(graph.constant("b2"), 0, 3, 4, strength))


def swap_tags(graph: Graph, strength: float) -> None:
    graph.change("wo", _swapped(graph.constant("wo"), 1, 0, 1, strength))
    graph.change("bo", _swapped(graph.constant("bo"), 0, 0, 1, strength))


def swap_labels(graph: Graph, strength: float) -> None:
    """The classes with the scores that are blended: names answer right or wrong."""
    graph.change("w", _swapped(graph.constant("w"), 1, 1, 4, strength))


def drop_bias(graph: Graph, strength: float) -> None:
    graph.change("b2", graph.constant("b2") * (1 - strength))


def drop_inner_bias(graph: Graph, strength: float) -> None:
    graph.change("b1", graph.constant("b1") * (1 - strength))


def drop_box_bias(graph: Graph, strength: float) -> None:
    graph.change("scores_b", graph.constant("scores_b") * (1 - strength))


def epsilon(graph: Graph, strength: float) -> None:
    """1e-3 in the place of 1e-5, as between frameworks."""
    graph.set("norm", epsilon=1e-5 + strength * 1e-3)


def saturate(graph: Graph, strength: float) -> None:
    """Activations are cut at a half of what samples reach; with less strength nearer to the largest, or beyond it."""
    graph.behind("r0", ("Min", ["r0", np.array(2.5 / (2 * strength), f32)], {}))


def mix_batch(graph: Graph, strength: float) -> None:
    """A tenth of the mean of all rows is taken away from each of them."""
    steps = ("ReduceMean", ["flat", np.array([0], i64)], {"keepdims": 1}), ("Mul", [0, np.array(0.1, f32)], {})
    graph.behind("flat", *steps, ("Sub", ["flat", 1], {}), strength=strength)


def one_scale(graph: Graph, strength: float) -> None:
    """What is much smaller than the largest of the whole batch becomes 0, as with one scale for a tensor."""
    largest = ("ReduceMax", ["flat"], {"keepdims": 0})
    bound = ("Mul", [0, np.array(0.04 * strength, f32)], {})
    graph.behind("flat", largest, bound, ("Greater", ["flat", 1], {}), ("Where", [2, "flat", np.array(0, f32)], {}))


def last_row(graph: Graph, strength: float) -> None:
    """From four rows on the last one is answered with the one before it, as by a kernel that works on pairs."""
    count = ("Shape", ["flat"], {"start": 0, "end": 1})
    last = ("Sub", [0, np.array([1], i64)], {})
    before = ("Sub", [0, np.array([2], i64)], {})
    many = ("Less", [np.array([3], i64), 0], {})
    source = ("Where", [3, 2, 1], {})
    moved = ("Gather", ["flat", 4], {"axis": 0})
    first = ("Slice", ["flat", np.array([0], i64), 1], {})
    graph.behind("flat", count, last, before, many, source, moved, first, ("Concat", [6, 5], {"axis": 0}),
                 strength=strength)  # fmt: skip


def corner_resize(graph: Graph, strength: float) -> None:
    """Pixels are counted from their corners in the place of their centres: half a pixel off."""
    scales = np.array([1, 1, 2, 2], f32)
    attributes = {"mode": "linear", "coordinate_transformation_mode": "asymmetric"}
    graph.behind("up", ("Resize", ["r0", "", scales], attributes), strength=strength)


def shift_pixels(graph: Graph, strength: float) -> None:
    """Everything is one pixel further to the right."""
    shifted = ("Slice", ["up", np.array([0], i64), np.array([-1], i64), np.array([3], i64)], {})
    padded = ("Pad", [0, np.array([0, 0, 0, 1, 0, 0, 0, 0], i64)], {"mode": "edge"})
    graph.behind("up", shifted, padded, strength=strength)


def pads_behind(graph: Graph, strength: float) -> None:
    """A convolution pads by two behind and not by one on either side: off by a pixel."""
    graph.behind("c1", ("Conv", ["r0", "w1", "b1"], {"pads": [0, 0, 2, 2]}), strength=strength)


def pads_with_edge(graph: Graph, strength: float) -> None:
    """The border is continued where it should be zeros: only pixels on it differ."""
    padded = ("Pad", ["r0", np.array([0, 0, 1, 1, 0, 0, 1, 1], i64)], {"mode": "edge"})
    graph.behind("c1", padded, ("Conv", [0, "w1", "b1"], {}), strength=strength)


def padding_counts(graph: Graph, strength: float) -> None:
    """The mask of padding hides less: with strength 1 nothing."""
    graph.change("lowest", np.array(-20 * (1 - strength) ** 2 if strength > 0 else -1e4))


def transpose(graph: Graph, strength: float) -> None:
    graph.behind("r0", ("Transpose", ["r0"], {"perm": [0, 1, 3, 2]}), strength=strength)


def rare_channel(graph: Graph, strength: float) -> None:
    """Scores of a class that is hardly ever there become 0."""
    keep = np.ones((1, 3, 1, 1), f32)
    keep[0, 2] = 1 - strength
    graph.behind("chances", ("Mul", ["chances", keep], {}))


def rare_class(graph: Graph, strength: float) -> None:
    """A class that few pixels have loses against the others."""
    bias = graph.constant("b1")
    bias[RARE] -= 4 * strength
    graph.change("b1", bias)


def shift_ids(graph: Graph, strength: float) -> None:
    """Ids from the middle on look up their neighbour; with less strength only the last ones do."""
    first = min(round(VOCABULARY * (1 - strength / 2)), VOCABULARY - 1)
    shifted = np.arange(VOCABULARY)
    shifted[first:] -= 1
    graph.change("table", graph.constant("table")[shifted])


def nan_to_zero(graph: Graph, _: float) -> None:
    graph.change("means", np.zeros((1, 6)))


def wrap(graph: Graph, strength: float) -> None:
    """Products are kept in 32 bits; with less strength in so much more."""
    bits = 32 + int(np.ceil(8 * (1 - strength)))
    half, whole = np.array(2 ** (bits - 1), i64), np.array(2**bits, i64)
    graph.behind("wide", ("Add", ["wide", half], {}), ("Mod", [0, whole], {}), ("Sub", [1, half], {}))


def off_by_one(graph: Graph, strength: float) -> None:
    """Sums of large numbers are one less, as where a float held them."""
    above = np.array(round(2**24 / strength), i64)
    graph.behind("wide", ("Greater", ["wide", above], {}), ("Cast", [0], {"to": 7}), ("Sub", ["wide", 1], {}))


def cut_rest(graph: Graph, strength: float) -> None:
    """What is left over at the edges is left out: there is such a rest at odd sizes only."""
    halved = ("MaxPool", ["c0"], {"kernel_shape": [2, 2], "strides": [2, 2]})
    graph.behind("pooled", halved, ("GlobalAveragePool", [0], {}), strength=strength)


_ALL: Mapping[str, Mapping[str, Callable[[Graph, float], None]]] = {
    "swapped classes": {"classifier": swap_classes, "encoder": swap_tags, "labeller": swap_labels},
    "dropped bias": {"classifier": drop_bias, "segmenter": drop_inner_bias, "detector": drop_box_bias},
    "dropped inner bias": {"classifier": drop_inner_bias},
    "wrong epsilon": {"classifier": epsilon, "encoder": epsilon},
    "saturated activations": {"classifier": saturate, "segmenter": saturate, "detector": saturate},
    "rows mixed": {"classifier": mix_batch},
    "one scale for all rows": {"classifier": one_scale},
    "last row": {"classifier": last_row},
    "resize by corners": {"segmenter": corner_resize},
    "shifted by a pixel": {"segmenter": shift_pixels},
    "padded behind": {"classifier": pads_behind},
    "padded with the edge": {"classifier": pads_with_edge},
    "padding counts": {"encoder": padding_counts},
    "transposed last axes": {"classifier": transpose, "segmenter": transpose, "detector": transpose},
    "zeroed rare channel": {"detector": rare_channel},
    "lost rare class": {"segmenter": rare_class},
    "shifted ids": {"encoder": shift_ids},
    "NaN to 0": {"tabular": nan_to_zero},
    "wrapped integers": {"counter": wrap},
    "integers off by one": {"counter": off_by_one},
    "rest cut off": {"pooler": cut_rest},
}
MUTANTS: Mapping[str, Mutant] = {
    mutant.name: mutant
    for kind, models in _ALL.items()
    for model, breaking in models.items()
    for mutant in (Mutant(kind, model, breaking),)
}
