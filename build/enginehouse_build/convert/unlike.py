"""Where one scale is too coarse for what it rounds: inputs of a Concat, or channels of an answer, of unlike ranges."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx

from enginehouse.contract.tensors import Tensors
from enginehouse_build.convert.ranges import Range, channel_widths

#: One scale for all: a part that is this much narrower than the widest is left 32 of 256 steps.
_UNLIKE = 8.0
#: The same of what is an answer: 64 steps.
_UNLIKE_END = 4.0


def unlike_joins(graph: onnx.GraphProto, seen: Mapping[str, Range]) -> set[str]:
    """Names of the Concats that join tensors of unlike ranges, as boxes in pixels and scores."""
    found = set()
    for node in graph.node:
        widths = [seen[name].width for name in node.input if name in seen and seen[name].width > 0]
        if node.op_type == "Concat" and widths and max(widths) > _UNLIKE * min(widths):
            found.add(node.name)
    return found


def unlike_ends(
    graph: onnx.GraphProto, chosen: Collection[str], layers: Collection[str], model: Path, requests: Sequence[Tensors]
) -> list[str]:
    """Those of the `chosen` nodes that make channels of unlike ranges which no further layer weighs.

    A layer learned how to weigh its inputs; behind the last one each channel is an answer, as of a head that makes both
    boxes and logits. `model` is the file of `graph`, `layers` are the names of its layers.
    """
    last = {value.name for value in graph.output}
    ends: dict[str, str] = {}
    for node in reversed(graph.node):
        if last.intersection(node.output):
            ends |= {name: node.name for name in node.output if node.name in chosen}
            last |= set() if node.name in layers else set(node.input)
    widths = channel_widths(model, requests, ends.keys())
    found = {
        ends[name] for name, width in widths.items() if width.max() > _UNLIKE_END * width[width > 0].min(initial=np.inf)
    }
    return [node.name for node in graph.node if node.name in found]
