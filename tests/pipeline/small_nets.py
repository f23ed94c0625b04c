"""Networks of a few layers, each with something that a change of precision can get wrong, and how to ask them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import openvino
from onnx.reference import ReferenceEvaluator

from enginehouse.contract.manifest import Precision
from enginehouse.engines.onnxruntime import cpu_settings
from enginehouse_build.inputs import postprocess
from enginehouse_build.inputs.preprocess import Preprocess

from .graphs import Inputs, f32, i64, model, node, save, weights

Convert = Callable[..., str]
#: What OpenVINO is asked to compute in, by precision, as the serving engine does.
HINTS: dict[Precision, str] = {"fp32": "f32", "bf16": "bf16", "fp16": "f16", "int8": "f32"}


def ask(path: Path, inputs: Inputs) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    # As the serving engine has them: without VNNI the answers would be those of saturated products.
    for key, value in cpu_settings().items():
        options.add_session_config_entry(key, value)
    return list(onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"]).run(None, inputs))


def ask_exactly(path: Path, inputs: Inputs) -> list[np.ndarray]:
    """Answers of ONNX's own reference, which rounds to fp16 at each step; ONNX Runtime on CPUs computes in fp32."""
    return list(ReferenceEvaluator(onnx.load(path)).run(None, inputs))


def ask_openvino(folder: Path, precision: Precision, inputs: Inputs) -> np.ndarray:
    options = {"INFERENCE_PRECISION_HINT": HINTS[precision], "INFERENCE_NUM_THREADS": 1}
    compiled = openvino.Core().compile_model(folder / "model.xml", "CPU", options)
    return np.array(compiled(inputs)[0])


def distance(got: np.ndarray, want: np.ndarray) -> float:
    return float(np.linalg.norm(got.astype(np.float64) - want) / np.linalg.norm(want))


def nodes_of(path: Path, *op_types: str) -> list[onnx.NodeProto]:
    return [found for found in onnx.load(path).graph.node if found.op_type in op_types]


def residual(folder: Path) -> tuple[Path, list[Inputs]]:
    """Two convolutions with a residual connection, a mean and a linear layer."""
    nodes = [
        node("Conv", ["x", "w0"], ["c0"], name="first", pads=[1, 1, 1, 1]),
        node("Relu", ["c0"], ["r0"]),
        node("Conv", ["r0", "w1"], ["c1"], name="second", pads=[1, 1, 1, 1]),
        node("Add", ["c1", "r0"], ["sum"], name="residual"),
        node("Relu", ["sum"], ["r1"]),
        node("GlobalAveragePool", ["r1"], ["mean"]),
        node("Flatten", ["mean"], ["flat"]),
        node("Gemm", ["flat", "w2"], ["y"], name="last"),
    ]
    parts = {"w0": weights(8, 3, 3, 3) / 5, "w1": weights(8, 8, 3, 3) / 8, "w2": weights(8, 5)}
    proto = model(nodes, {"x": (f32, ["n", 3, 12, 12])}, {"y": (f32, ["n", 5])}, parts)
    return save(folder / "residual.onnx", proto), requests(x=(3, 12, 12))


def requests(**shapes: tuple[int, ...]) -> list[Inputs]:
    generator = np.random.default_rng(0)
    return [{name: generator.standard_normal((4, *shape), f32) for name, shape in shapes.items()} for _ in range(6)]


def pixels(folder: Path) -> tuple[Path, list[Inputs]]:
    """uint8 pixels that are resized and normalised before a convolution, and a ranking behind it."""
    nodes = [
        node("Conv", ["image", "w"], ["c"], name="conv"),
        node("Relu", ["c"], ["r"]),
        node("GlobalAveragePool", ["r"], ["m"]),
        node("Flatten", ["m"], ["y"]),
    ]
    proto = model(nodes, {"image": (f32, ["n", 3, 8, 8])}, {"y": (f32, ["n", 6])}, {"w": weights(6, 3, 3, 3)})
    proto = Preprocess.of("imagenet,size=20x24").fit(proto).attach(proto)
    proto = postprocess.of("softmax").attach(proto)
    generator = np.random.default_rng(0)
    data = [{"image": generator.integers(0, 256, (4, 20, 24, 3), np.uint8)} for _ in range(6)]
    return save(folder / "pixels.onnx", proto), data


def is_processing(name: str) -> bool:
    return name.startswith(("preprocess/", "postprocess/"))


def attention(folder: Path) -> tuple[Path, list[Inputs]]:
    """Tokens, one head of attention with a mask that fp16 cannot hold, and a residual connection around it."""
    nodes = [
        node("Gather", ["embedding", "ids"], ["e"]),
        node("MatMul", ["e", "wq"], ["q"]),
        node("MatMul", ["e", "wk"], ["k"]),
        node("MatMul", ["e", "wv"], ["v"]),
        node("Transpose", ["k"], ["kt"], perm=[0, 2, 1]),
        node("MatMul", ["q", "kt"], ["s"], name="scores"),
        node("Equal", ["ids", "padding"], ["is_padding"]),
        node("Unsqueeze", ["is_padding", "middle"], ["masked"]),
        node("Where", ["masked", "lowest", "s"], ["ms"]),
        node("Softmax", ["ms"], ["p"]),
        node("MatMul", ["p", "v"], ["a"], name="weighted"),
        node("Add", ["a", "e"], ["r"], name="residual"),
        node("LayerNormalization", ["r", "gain"], ["n"]),
        node("MatMul", ["n", "wo"], ["y"]),
    ]
    parts = {f"w{part}": weights(16, 16, seed=seed) / 4 for seed, part in enumerate("qkv")}
    parts |= {"wo": weights(16, 4), "embedding": weights(30, 16), "gain": np.ones(16, f32)}
    parts |= {"padding": np.array(0, i64), "middle": np.array([1], i64), "lowest": np.array(-3e38, f32)}
    proto = model(nodes, {"ids": (i64, ["n", 7])}, {"y": (f32, ["n", 7, 4])}, parts)
    generator = np.random.default_rng(0)
    ids = [np.c_[generator.integers(1, 30, (4, 5)), generator.integers(0, 2, (4, 2)) * 3] for _ in range(6)]
    return save(folder / "attention.onnx", proto), [{"ids": found} for found in ids]


def recurrent(folder: Path, width: int = 64) -> tuple[Path, list[Inputs]]:
    """Linear layers of 90 * `width` multiplications a row, an LSTM of 2,376, and a linear layer of 18."""
    nodes = [
        node("MatMul", ["x", "up"], ["m"], name="first"),
        node("Relu", ["m"], ["a"]),
        node("MatMul", ["a", "down"], ["d"], name="second"),
        node("LSTM", ["d", "w", "r"], ["all", "last"], name="lstm", hidden_size=6),
        node("Squeeze", ["last", "axes"], ["h"]),
        node("MatMul", ["h", "out"], ["y"], name="third"),
    ]
    parts = {"w": weights(1, 24, 5), "r": weights(1, 24, 6), "out": weights(6, 3), "axes": np.array([0], i64)}
    parts |= {"up": weights(5, width), "down": weights(width, 5) / f32(width)}
    proto = model(nodes, {"x": (f32, [9, "n", 5])}, {"y": (f32, ["n", 3])}, parts)
    generator = np.random.default_rng(0)
    return save(folder / "lstm.onnx", proto), [{"x": generator.standard_normal((9, 4, 5), f32)} for _ in range(6)]
