"""ResNet-50 on ONNX Runtime beside torch in the same run, all with inputs and outputs on the GPU, and the roofline.

The floor is what the measured rates of this GPU allow: all operations of the convolutions and linear layers at the rate
of a large matrix product, or all their inputs, outputs and weights moved once.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from examples import digits, resnet
from torch import nn

from benchmarks.gpu import models
from benchmarks.gpu.binding import Bound, Plain
from benchmarks.gpu.lab import NOT_RUN, Lab, Row, tried
from benchmarks.gpu.rates import Rates, Work, device, measured, settle, use, work_of
from benchmarks.gpu.sessions import session
from benchmarks.gpu.timing import Call, in_turns
from enginehouse.contract.parity import compare

#: ONNX Runtime: name -> arithmetic, artifact, settings of the CUDA provider.
_ONNX: Mapping[str, tuple[str, str, Mapping[str, str]]] = {
    "onnxruntime fp32": ("fp32", "fp32", {"use_tf32": "0"}),
    "onnxruntime tf32": ("tf32", "fp32", {"use_tf32": "1"}),
    "onnxruntime fp16": ("fp16", "fp16", {}),
    # A search as the others make it would take much of the part's time once more; `tuning` says what it is worth.
    "onnxruntime fp16, NHWC": ("fp16", "fp16", {"prefer_nhwc": "1", "cudnn_conv_algo_search": "HEURISTIC"}),
    "onnxruntime fp16, CUDA graph": ("fp16", "fp16", {"enable_cuda_graph": "1", "cudnn_conv_algo_search": "HEURISTIC"}),
}
#: torch, eagerly: name -> arithmetic.
_EAGER = {"torch eager fp32": "fp32", "torch eager tf32": "tf32", "torch eager fp16, channels_last": "fp16"}
#: torch.compile of fp16 in channels_last: name -> mode.
_COMPILED = {
    "torch.compile fp16, channels_last": "default",
    "torch.compile fp16, channels_last, CUDA graph": "reduce-overhead",
}
#: What torch.compile is compared with, measured with it once more.
_OURS = "onnxruntime fp16"


def run(lab: Lab) -> Iterator[Row]:
    """A row for each contestant and number of rows, then the ratio to torch.compile."""
    rates, module = measured(lab), _module(lab)
    work = work_of(module, torch.from_numpy(models.request(lab.main, 1)["image"]))
    module = module.to(device(lab))
    for rows in lab.sized((128, 1), (8, 1)):
        image = models.request(lab.main, rows)["image"]
        expected = Plain(session(lab, models.onnx_file(lab, lab.main, "fp32"), use_tf32="0"), {"image": image})()
        there = torch.from_numpy(image).to(device(lab))
        onnx = {name: partial(_onnx, lab, name, image, expected) for name in _ONNX}
        eager = {name: partial(_torch, lab, module, name, there, expected) for name in _EAGER}
        compiled = {name: partial(_compiled, lab, module, name, there, expected) for name in _COMPILED}
        ready: dict[str, Contestant] = {}
        yield from _made(rows, {**onnx, **eager}, ready)
        yield from _measured(lab, rows, ready, work, rates)
        ready = {name: one for name, one in ready.items() if name == _OURS}
        yield from _made(rows, compiled, ready)
        yield from _measured(lab, rows, ready, work, rates)


class Contestant(NamedTuple):
    """Its arithmetic, a call that ends when the answer is there, and how far (relative L2) that is from fp32."""

    arithmetic: str
    call: Call
    distance: float


def _made(rows: int, makes: Mapping[str, Callable[[], Contestant]], ready: dict[str, Contestant]) -> Iterator[Row]:
    """Add those that can be made to `ready`; a row for each of the others."""

    def make(name: str) -> Row:
        ready[name] = makes[name]()
        return {}

    for name in makes:
        if NOT_RUN in (row := tried({"contestant": name, "rows": rows}, partial(make, name))):
            yield row


def _measured(lab: Lab, rows: int, ready: Mapping[str, Contestant], work: Work, rates: Rates) -> Iterator[Row]:
    """A row for each contestant, which take turns, and the ratios to what is compiled."""
    times = in_turns({name: _in(one) for name, one in ready.items()}, lab.sized(0.5, 0.1)) if ready else {}
    for name, taken in times.items():
        floor_ms = work.floor_ms(rows, ready[name].arithmetic, rates)
        yield {
            "contestant": name,
            "rows": rows,
            "p50 ms": taken.p50_ms,
            "p99 ms": taken.p99_ms,
            "rows/s": rows / taken.p50_ms * 1e3,
            "floor ms": floor_ms,
            "of the roof": floor_ms / taken.p50_ms,
            "relative L2": ready[name].distance,
        }
    for name in (name for name in _COMPILED if {name, _OURS} <= times.keys()):
        ratio = times[name].p50_ms / times[_OURS].p50_ms
        yield {"contestant": f"{_OURS} beside {name}", "rows": rows, "of its rate": ratio}


def _in(one: Contestant) -> Call:
    def within() -> object:
        use(one.arithmetic)
        return one.call()

    return within


def _onnx(lab: Lab, name: str, image: np.ndarray, expected: Mapping[str, np.ndarray]) -> Contestant:
    arithmetic, precision, options = _ONNX[name]
    if options:
        # The CPU's provider has none of these settings: there the plain fp16 stands in for all.
        lab.need_gpu()
    opened = session(lab, models.onnx_file(lab, lab.main, precision), **options)
    bound = Bound(lab, opened, {"image": image}, expected, stays=True)
    bound()
    return Contestant(arithmetic, bound, compare(bound.answers(), expected).relative_l2)


def _torch(
    lab: Lab, module: nn.Module, name: str, image: torch.Tensor, expected: Mapping[str, np.ndarray]
) -> Contestant:
    arithmetic = _EAGER[name]
    chosen = _half(lab, module) if arithmetic == "fp16" else module
    return _contestant(lab, chosen, arithmetic, image, expected)


def _compiled(
    lab: Lab, module: nn.Module, name: str, image: torch.Tensor, expected: Mapping[str, np.ndarray]
) -> Contestant:
    compiled = torch.compile(_half(lab, module), mode=_COMPILED[name], dynamic=False)
    return _contestant(lab, compiled, "fp16", image, expected)


def _half(lab: Lab, module: nn.Module) -> nn.Module:
    return copy.deepcopy(module).to(device(lab), torch.float16, memory_format=torch.channels_last)


def _contestant(
    lab: Lab, module: Callable[[torch.Tensor], torch.Tensor], arithmetic: str, image: torch.Tensor, expected: Any
) -> Contestant:
    def call() -> torch.Tensor:
        with torch.inference_mode():
            answer = module(image)
        settle(lab)
        return answer

    use(arithmetic)
    ((output, wanted),) = expected.items()
    answer = call().float().cpu().numpy()
    return Contestant(arithmetic, call, compare({output: answer}, {output: wanted}).relative_l2)


def _module(lab: Lab) -> nn.Module:
    """The network with what its graph does to pixels; a dry run has the small one."""
    if lab.main == "digits":
        return Pixels(digits.digits().module.get_submodule("features"), (0.0,), (16 / 255,))
    return Pixels(resnet.resnet50().module, resnet.MEAN, resnet.STD)


class Pixels(nn.Module):
    """Images (uint8 [rows, height, width], or with channels last), normalised as in the graph of the artifacts."""

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = network.eval()
        means, deviations = (torch.tensor(values).reshape(1, -1, 1, 1) for values in (mean, std))
        self.register_buffer("scale", 1 / (255 * deviations))
        self.register_buffer("shift", -means / deviations)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        planes = image.permute(0, 3, 1, 2) if image.ndim == 4 else image.unsqueeze(1)
        answer: torch.Tensor = self.network(planes.to(self.scale.dtype) * self.scale + self.shift)
        return answer
