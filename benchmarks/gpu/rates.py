"""What the hardware does at best, measured: matrix rates and memory bandwidth. The roof that a network runs under."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import nn

from benchmarks.gpu.lab import Lab
from benchmarks.gpu.timing import in_turns

#: Name of an arithmetic -> torch's dtype and its setting for fp32 products.
ARITHMETIC: Mapping[str, tuple[torch.dtype, str]] = {
    "fp32": (torch.float32, "highest"),
    "tf32": (torch.float32, "high"),
    "fp16": (torch.float16, "highest"),
}


class Rates(NamedTuple):
    """Floating-point operations a second by arithmetic, and bytes a second, read and written counted."""

    flops: Mapping[str, float]
    bandwidth: float


class Work(NamedTuple):
    """What a network has to do: operations and activations (elements) of a row, and weights (elements)."""

    flops: float
    activations: float
    weights: float

    def floor_ms(self, rows: int, arithmetic: str, rates: Rates) -> float:
        """Milliseconds that no version can beat: all operations at the matrix rate, or all bytes moved once."""
        size = ARITHMETIC[arithmetic][0].itemsize
        moved = (rows * self.activations + self.weights) * size
        return max(rows * self.flops / rates.flops[arithmetic], moved / rates.bandwidth) * 1e3


def device(lab: Lab) -> str:
    """torch's name of what is measured."""
    return lab.sized("cuda", "cpu")


def settle(lab: Lab) -> None:
    """Wait until the GPU has done everything."""
    if not lab.dry:
        torch.cuda.synchronize()


def use(arithmetic: str) -> None:
    """Have torch compute fp32 products and convolutions in it."""
    torch.set_float32_matmul_precision(ARITHMETIC[arithmetic][1])
    torch.backends.cudnn.allow_tf32 = arithmetic == "tf32"


def measured(lab: Lab) -> Rates:
    """The rates of this device, by a large product on random numbers and a large copy."""
    side, elements = lab.sized(8192, 512), lab.sized(1 << 28, 1 << 22)
    flops = {}
    for arithmetic, (dtype, _) in ARITHMETIC.items():
        use(arithmetic)
        left, right = (torch.randn(side, side, dtype=dtype, device=device(lab)) for _ in range(2))

        def product(left: torch.Tensor = left, right: torch.Tensor = right) -> None:
            left @ right
            settle(lab)

        flops[arithmetic] = 2 * side**3 / (in_turns({"": product}, 0.3)[""].p50_ms * 1e-3)
    source = torch.randn(elements, device=device(lab))
    target = torch.empty_like(source)

    def copy() -> None:
        target.copy_(source)
        settle(lab)

    return Rates(flops, 2 * source.nbytes / (in_turns({"": copy}, 0.3)[""].p50_ms * 1e-3))


def work_of(module: nn.Module, *example: torch.Tensor) -> Work:
    """Of the convolutions and linear layers, whose neighbours can be computed on the way; `example` has one row."""
    flops = activations = weights = 0.0

    def count(layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal flops, activations, weights
        weight = layer.get_parameter("weight")
        # Each weight of a filter is used once for every value of its channel.
        flops += 2 * output.numel() * weight[0].numel()
        activations += inputs[0].numel() + output.numel()
        weights += weight.numel()

    layers = [layer for layer in module.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    with torch.inference_mode():
        module(*example)
    for hook in hooks:
        hook.remove()
    return Work(flops, activations, weights)
