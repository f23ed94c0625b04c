"""Torch factories for the export tests; named on the command line as path/to/modules.py:factory."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from enginehouse_build import ModelSource


class Net(nn.Module):
    """One linear layer after whatever `mix` does to its input."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(6, 4)

    def mix(self, x: Tensor) -> Tensor:
        return x.flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(self.mix(x))
        return logits


class BakedReshape(Net):
    def mix(self, x: Tensor) -> Tensor:
        return x.reshape(int(x.shape[0]), -1)


class DataDependent(Net):
    def mix(self, x: Tensor) -> Tensor:
        return x.flatten(1) + 1 if x.sum() > 0 else x.flatten(1)


class MixesRows(Net):
    def mix(self, x: Tensor) -> Tensor:
        return x.flatten(1) - x.flatten(1).mean(dim=0)


class TwoFaced(nn.Module):
    """Two inputs in, a mapping of two outputs out."""

    def forward(self, left: Tensor, right: Tensor) -> dict[str, Tensor]:
        return {"total": left + right, "product": left * right}


class Embedding(nn.Module):
    """Its output has the name that the exporter gives to a tensor inside."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(7, 4)

    def forward(self, words: Tensor) -> Tensor:
        return self.table(words) * 2


class Drops(Net):
    def mix(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(x.flatten(1), 0.3, training=True)


class Noisy(Net):
    def mix(self, x: Tensor) -> Tensor:
        return x.flatten(1) + torch.randn_like(x).flatten(1)


class Counts(Net):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def mix(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x.flatten(1) * self.calls


class BatchStatistics(Net):
    def mix(self, x: Tensor) -> Tensor:
        return nn.functional.batch_norm(x.flatten(1), None, None, training=True)


class AtRest(Net):
    """Everything of the kind that does no harm in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.drop, self.batch = nn.Dropout(0.5), nn.BatchNorm1d(2)
        self.instance = nn.InstanceNorm1d(2)

    def mix(self, x: Tensor) -> Tensor:
        x = self.instance(self.batch(self.drop(x)))
        heads = x.unsqueeze(1)
        return nn.functional.scaled_dot_product_attention(heads, heads, heads).flatten(1)


class Decoder(nn.Module):
    """A step of a decoder: its mask is as long as past and new tokens together."""

    def forward(self, past: Tensor, new: Tensor, mask: Tensor) -> Tensor:
        return (torch.cat([past, new], dim=1) + mask) * 2


class ByKeyword(Net):
    def forward(self, *, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x)


@dataclass
class Parts:
    logits: Tensor


class DataClass(Net):
    def forward(self, x: Tensor) -> Parts:  # type: ignore[override]
        return Parts(super().forward(x))


class Nested(Net):
    def forward(self, x: Tensor) -> dict[str, object]:  # type: ignore[override]
        return {"parts": {"logits": super().forward(x)}}


EXAMPLE = torch.zeros(1, 2, 3)


def plain() -> tuple[nn.Module, tuple[Tensor]]:
    return Net(), (EXAMPLE,)


def baked() -> tuple[nn.Module, Tensor]:
    return BakedReshape(), EXAMPLE


def data_dependent() -> tuple[nn.Module, Tensor]:
    return DataDependent(), EXAMPLE


def mixes_rows() -> tuple[nn.Module, Tensor]:
    return MixesRows(), EXAMPLE


def two_faced() -> ModelSource:
    # By name and in the other order than `forward` has them.
    return ModelSource(TwoFaced(), {"right": torch.ones(2, 3), "left": torch.zeros(2, 3)})


def wrong_example() -> tuple[nn.Module, Tensor]:
    return Net(), torch.zeros(1, 7)


def not_a_model() -> str:
    return "weights.pt"


def raises() -> None:
    raise FileNotFoundError("weights.pt")


def embedding() -> ModelSource:
    return ModelSource(
        Embedding(),
        torch.ones(2, 6, dtype=torch.int64),
        outputs=("embedding",),
        axes={"words": {1: "words"}},
        ranges={"words": (2, 6, 20)},
    )


def pictures() -> ModelSource:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 6 * 6, 5))
    return ModelSource(network, {"image": torch.zeros(2, 3, 8, 8)}, preprocess="imagenet", postprocess="topk:2")


def drops() -> tuple[nn.Module, Tensor]:
    return Drops(), EXAMPLE


def noisy() -> tuple[nn.Module, Tensor]:
    return Noisy(), EXAMPLE


def counts() -> tuple[nn.Module, Tensor]:
    return Counts(), EXAMPLE


def batch_statistics() -> tuple[nn.Module, Tensor]:
    return BatchStatistics(), EXAMPLE.expand(2, 2, 3)


def decoder() -> ModelSource:
    return ModelSource(
        Decoder(),
        (torch.ones(2, 4), torch.ones(2, 2), torch.ones(2, 6)),
        axes={"past": {1: "past"}, "new": {1: "new"}, "mask": {1: "past + new"}},
        ranges={"past": (0, 4, 9), "new": (1, 2, 5)},
    )


def by_keyword() -> tuple[nn.Module, Tensor]:
    return ByKeyword(), EXAMPLE


def data_class() -> tuple[nn.Module, Tensor]:
    return DataClass(), EXAMPLE


def nested() -> tuple[nn.Module, Tensor]:
    return Nested(), EXAMPLE


def at_rest() -> tuple[nn.Module, Tensor]:
    return AtRest(), EXAMPLE
