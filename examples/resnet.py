"""ResNet-18 and ResNet-50 in plain torch, asked with uint8 photographs of 224 x 224 pixels.

    enginehouse build examples.resnet:resnet18 --name resnet18 --store store --precisions fp32,fp16,bf16,int8

The weights are random (seeded), because no trained ones can be fetched here, and the batch normalisations measured on
real images, so that activations have the magnitudes of a trained network. The ImageNet normalisation is declared, not
programmed: it becomes part of the graph, and a request carries pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor, nn

    from enginehouse_build import ModelSource

SEED = 11
SIDE = 224
CLASSES = 1000
#: Weight of the last normalisation of a residual branch.
BRANCH = 0.1
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def photographs(rows: int, seed: int = SEED) -> np.ndarray:
    """`rows` random cuts of scikit-learn's two sample photographs: uint8 [rows, 224, 224, 3]. Needs no torch."""
    from sklearn.datasets import load_sample_images

    images = load_sample_images().images
    generator = np.random.default_rng(seed)
    cuts = []
    for row in range(rows):
        image = images[row % len(images)]
        top, left = (generator.integers(0, side - SIDE) for side in image.shape[:2])
        cut = image[top : top + SIDE, left : left + SIDE]
        cuts.append(cut[:, ::-1] if generator.random() < 0.5 else cut)
    return np.stack(cuts)


def resnet18() -> ModelSource:
    """18 layers, 11.7 million weights."""
    return _source(_resnet((2, 2, 2, 2), deep=False))


def resnet50() -> ModelSource:
    """50 layers, 25.6 million weights."""
    return _source(_resnet((3, 4, 6, 3), deep=True))


def _source(module: nn.Module) -> ModelSource:
    import torch

    from enginehouse_build import ModelSource

    _measure_normalisations(module)
    return ModelSource(
        module=module,
        inputs={"image": torch.zeros(2, 3, SIDE, SIDE)},
        outputs=("logits",),
        samples={"image": photographs(64)},
        calibration={"image": photographs(100, seed=SEED + 1)},
        preprocess="imagenet",
    )


def _measure_normalisations(module: nn.Module) -> None:
    import torch

    pixels = photographs(16, seed=SEED + 2).transpose(0, 3, 1, 2) / np.float32(255)
    mean, std = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (MEAN, STD))
    module.train()
    with torch.no_grad():
        module((torch.from_numpy(pixels) - mean) / std)
    module.eval()


def _resnet(depths: tuple[int, int, int, int], *, deep: bool) -> nn.Module:
    """The network of He et al. 2015, with the stride of a bottleneck on its 3 x 3 convolution."""
    import torch
    from torch import nn

    def unit(inner: int, outer: int, kernel: int, stride: int = 1) -> nn.Sequential:
        convolution = nn.Conv2d(inner, outer, kernel, stride, kernel // 2, bias=False)
        nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
        # One batch measures the statistics: they are its own, not a moving average.
        return nn.Sequential(convolution, nn.BatchNorm2d(outer, momentum=None))

    class Block(nn.Module):
        def __init__(self, inner: int, width: int, stride: int) -> None:
            super().__init__()
            outer = width * (4 if deep else 1)
            relu = nn.ReLU()
            if deep:
                layers, last = [unit(inner, width, 1), relu, unit(width, width, 3, stride), relu], unit(width, outer, 1)
            else:
                layers, last = [unit(inner, width, 3, stride), relu], unit(width, outer, 3)
            # As trained networks do, and unlike random ones, pass most of the signal on: depth then magnifies nothing.
            nn.init.constant_(last.get_submodule("1").get_parameter("weight"), BRANCH)
            self.body = nn.Sequential(*layers, last)
            self.shortcut = nn.Identity() if inner == outer and stride == 1 else unit(inner, outer, 1, stride)

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(self.body(x) + self.shortcut(x))

    class ResNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            blocks: list[nn.Module] = []
            inner = 64
            for stage, depth in enumerate(depths):
                width = 64 << stage
                for index in range(depth):
                    blocks.append(Block(inner, width, 2 if stage and not index else 1))
                    inner = width * (4 if deep else 1)
            self.stem = nn.Sequential(unit(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
            self.blocks = nn.Sequential(*blocks)
            self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inner, CLASSES))

        def forward(self, image: Tensor) -> Tensor:
            logits: Tensor = self.head(self.blocks(self.stem(image)))
            return logits

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return ResNet()
