"""A small CNN trained on scikit-learn's real handwritten digits: 1797 grey images of 8 x 8 pixels, values 0..16.

    enginehouse build examples.digits:digits --name digits --store store --precisions fp32,fp16,bf16,int8

The model takes the raw pixels (`image`, uint8 [batch, 8, 8]): scaling and layout are part of the graph, so a client
sends bytes and cannot get the pre-processing wrong.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

    from enginehouse_build import ModelSource

HELD_OUT = 360
SEED = 7
EPOCHS = 20
BATCH = 64
RATE = 6e-3


def held_out() -> tuple[np.ndarray, np.ndarray]:
    """The 360 images (uint8 [360, 8, 8]) and labels (int64 [360]) that training never sees. Needs no torch."""
    images, labels = _shuffled()
    return images[:HELD_OUT], labels[:HELD_OUT]


def digits() -> ModelSource:
    """Train the CNN (a few seconds on two cores, seeded) and describe it to `enginehouse build`."""
    import torch

    from enginehouse_build import ModelSource

    images, labels = _shuffled()
    module = _train(torch.from_numpy(images[HELD_OUT:]), torch.from_numpy(labels[HELD_OUT:]))
    return ModelSource(
        module=module,
        inputs={"image": torch.from_numpy(images[:2])},
        outputs=("logits",),
        samples={"image": images[:HELD_OUT]},
        labels=labels[:HELD_OUT],
        # int8 takes its ranges from images that it is not judged on.
        calibration={"image": images[HELD_OUT:]},
    )


def _shuffled() -> tuple[np.ndarray, np.ndarray]:
    # scikit-learn keeps the writers in order; a fixed shuffle makes both parts alike.
    from sklearn.datasets import load_digits

    data = load_digits()
    order = np.random.default_rng(SEED).permutation(len(data.target))
    return data.images[order].astype(np.uint8), data.target[order].astype(np.int64)


def _network() -> torch.nn.Module:
    from torch import Tensor, nn

    class DigitsNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = nn.Sequential(
                nn.Conv2d(1, 16, 3, padding=1),
                nn.ReLU(),
                nn.Conv2d(16, 32, 3, padding=1),
                nn.ReLU(),
                nn.MaxPool2d(2),
                nn.Flatten(),
                nn.Linear(32 * 4 * 4, 64),
                nn.ReLU(),
                nn.Dropout(0.25),
                nn.Linear(64, 10),
            )

        def forward(self, image: Tensor) -> Tensor:
            logits: Tensor = self.features(image.float().div(16.0).unsqueeze(1))
            return logits

    return DigitsNet()


def _train(images: torch.Tensor, labels: torch.Tensor) -> torch.nn.Module:
    import torch

    threads = torch.get_num_threads()
    # Steps of tens of microseconds: a second thread only waits at barriers, for long where cores are busy.
    torch.set_num_threads(1)
    try:
        # A random state of its own, so that training leaves that of the caller alone.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            module = _network()
            _fit(module, images, labels)
    finally:
        torch.set_num_threads(threads)
    return module.eval()


def _fit(module: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor) -> None:
    import torch

    batches = len(images) // BATCH
    optimiser = torch.optim.AdamW(module.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=RATE, total_steps=EPOCHS * batches)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(images))[: batches * BATCH].split(BATCH):
            loss = torch.nn.functional.cross_entropy(module(images[rows]), labels[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()


if __name__ == "__main__":
    import torch

    source = digits()
    images, labels = held_out()
    with torch.inference_mode():
        predicted = source.module(torch.from_numpy(images)).argmax(1).numpy()
    print(f"accuracy on {len(labels)} held-out digits: {(predicted == labels).mean():.4f}")
