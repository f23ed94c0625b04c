"""The networks that the benchmarks serve: one whose cost is the way to it, one in between, one whose cost is itself.

    enginehouse build benchmarks.models:tiny --name tiny --store store --formats onnx --precisions fp32

All but *pixels* take float32 arrays, as most peers do. Weights are random (seeded): speed does not depend on them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import nn

    from enginehouse_build import ModelSource

SEED = 5
SIDE = 224
FEATURES = 64
CLASSES = 1000

#: Kind of block of MobileNetV2: expansion, channels, repeats, first stride (Sandler et al. 2018, table 2).
_MOBILE_BLOCKS = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def tiny() -> ModelSource:
    """Two dense layers over 64 numbers: some ten microseconds of arithmetic, 256 bytes a row."""
    from torch import nn

    return _source(nn.Sequential(nn.Linear(FEATURES, 256), nn.ReLU(), nn.Linear(256, 10)), "x", vectors(64))


def conv() -> ModelSource:
    """Convolutions over 64 numbers: 256 bytes a row like *tiny*, 0.9 GFLOP multiply-adds, more at once gain little."""
    from torch import nn

    side, channels = 16, 128
    layers: list[nn.Module] = [nn.Linear(FEATURES, 8 * side * side), nn.Unflatten(1, (8, side, side))]
    for index in range(24):
        layers += [nn.Conv2d(8 if index == 0 else channels, channels, 3, 1, 1), nn.ReLU()]
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10)]
    return _source(nn.Sequential(*layers), "x", vectors(64))


def wide() -> ModelSource:
    """Dense layers with 200 MB of weights: a call takes as long as reading them, so more rows in it cost little."""
    from torch import nn

    width = 2048
    layers: list[nn.Module] = [nn.Linear(FEATURES, width)]
    for _ in range(12):
        layers += [nn.ReLU(), nn.Linear(width, width)]
    return _source(nn.Sequential(*layers, nn.ReLU(), nn.Linear(width, 10)), "x", vectors(64))


def frame() -> ModelSource:
    """A mean over 602 KB of image and a dense layer: next to no arithmetic, so that the cost is that of the bytes."""
    from torch import nn

    return _source(nn.Sequential(nn.AvgPool2d(32), nn.Flatten(), nn.Linear(147, 10)), "image", images(16))


def mobilenet() -> ModelSource:
    """MobileNetV2, 3.5 million weights, 0.3 GFLOP multiply-adds, 602 KB a row."""
    return _source(_mobilenet(), "image", images(16))


def resnet18() -> ModelSource:
    """ResNet-18, 11.7 million weights, 1.8 GFLOP multiply-adds, 602 KB a row."""
    from examples.resnet import resnet18 as with_pixels

    return _source(with_pixels().module, "image", images(16))


def pixels() -> ModelSource:
    """ResNet-18 with its preprocessing inside, 150 KB of pixels (uint8) a row: for artifacts other than fp32 ONNX."""
    from examples.resnet import resnet18 as with_pixels

    return with_pixels()


def vectors(rows: int, seed: int = SEED) -> np.ndarray:
    """float32 [rows, 64]."""
    return np.random.default_rng(seed).standard_normal((rows, FEATURES), dtype=np.float32)


def images(rows: int, seed: int = SEED) -> np.ndarray:
    """Photographs, normalised: float32 [rows, 3, 224, 224]."""
    from examples.resnet import photographs

    pixels = photographs(rows, seed).transpose(0, 3, 1, 2) / np.float32(127.5) - np.float32(1)
    return np.ascontiguousarray(pixels, np.float32)


def _source(module: nn.Module, name: str, samples: np.ndarray) -> ModelSource:
    import torch

    from enginehouse_build import ModelSource

    module.train()
    with torch.no_grad():
        module(torch.from_numpy(samples[:16]))
    return ModelSource(
        module=module.eval(),
        inputs={name: torch.from_numpy(samples[:2])},
        outputs=("y",),
        samples={name: samples},
    )


def _mobilenet() -> nn.Module:
    import torch
    from torch import nn

    def unit(inner: int, outer: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> list[nn.Module]:
        convolution = nn.Conv2d(inner, outer, kernel, stride, kernel // 2, groups=groups, bias=False)
        return [convolution, nn.BatchNorm2d(outer, momentum=None)]

    class Block(nn.Module):
        def __init__(self, inner: int, outer: int, expansion: int, stride: int) -> None:
            super().__init__()
            middle = inner * expansion
            first = [*unit(inner, middle), nn.ReLU6()] if expansion > 1 else []
            depthwise = [*unit(middle, middle, 3, stride, groups=middle), nn.ReLU6()]
            self.body = nn.Sequential(*first, *depthwise, *unit(middle, outer))
            self.adds = stride == 1 and inner == outer

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.body(x)
            return x + y if self.adds else y

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        layers: list[nn.Module] = [*unit(3, 32, 3, 2), nn.ReLU6()]
        inner = 32
        for expansion, outer, repeats, first_stride in _MOBILE_BLOCKS:
            for index in range(repeats):
                layers.append(Block(inner, outer, expansion, first_stride if index == 0 else 1))
                inner = outer
        layers += [*unit(inner, 1280), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1280, CLASSES)]
        return nn.Sequential(*layers)
