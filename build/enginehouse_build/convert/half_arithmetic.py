"""What a device that computes in fp16 would answer, found on a CPU, which computes fp16 files in fp32.

Multiplications and sums inside an operator are those of fp32, as in the kernels of GPUs; what an operator takes and
makes is rounded to fp16.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from enginehouse_build.reference.onnx import Run, plain_session


def simulated(half: Path, suffix: str, scratch: Path) -> Run:
    """The ONNX file `half`, whose fp16 tensors have names that end in `suffix`, with each of them really rounded.

    ONNX Runtime drops the casts that it puts around fp16 operators itself, but not those of the model: so the file
    `scratch`, which is written for it, has fp32 operators and a cast to fp16 and back behind each.
    """
    proto = onnx.load(half)
    graph = proto.graph
    for tensor in graph.initializer:
        if tensor.name.endswith(suffix):
            _widen(tensor)
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        nodes.append(node)
        made = [at for at, name in enumerate(node.output) if name.endswith(suffix)]
        for attribute in node.attribute if made else ():
            if attribute.HasField("t") and attribute.t.data_type == TensorProto.FLOAT16:
                _widen(attribute.t)
            if node.op_type == "Cast" and attribute.name == "to":
                attribute.i = TensorProto.FLOAT
        for at in made:
            name = node.output[at]
            node.output[at] = exact = f"{name}/exact"
            nodes += [
                helper.make_node("Cast", [exact], [f"{name}/rounded"], name=f"{name}/round", to=TensorProto.FLOAT16),
                helper.make_node("Cast", [f"{name}/rounded"], [name], name=f"{name}/widen", to=TensorProto.FLOAT),
            ]
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    onnx.save(proto, scratch)
    return plain_session(scratch)


def _widen(tensor: onnx.TensorProto) -> None:
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
