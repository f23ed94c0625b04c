"""A transformer encoder that turns token ids into sentence embeddings, for sequences of any length up to 256.

    enginehouse build examples.encoder:encoder --name encoder --store store

The weights are random (seeded): the shapes and costs are those of a small BERT. `sequence` is the model's cost axis:
latency is measured along it, and TensorRT engines are built for its range.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from enginehouse_build import ModelSource

SEED = 3
WORDS = 5000
WIDTH = 256
USUAL = 64
LONGEST = 256


def sentences(rows: int, length: int = USUAL, seed: int = SEED) -> dict[str, np.ndarray]:
    """Random token ids and masks (int64 [rows, length]) of sentences that end anywhere. Needs no torch."""
    generator = np.random.default_rng(seed)
    ends = generator.integers(length // 4, length + 1, (rows, 1))
    mask = (np.arange(length) < ends).astype(np.int64)
    return {"input_ids": generator.integers(1, WORDS, (rows, length)) * mask, "attention_mask": mask}


def encoder(longest: int = LONGEST, layers: int = 4, width: int = WIDTH) -> ModelSource:
    """Layers of that width, mean over the tokens, length 1: embedding float32 [rows, width]."""
    import torch
    from torch import Tensor, nn
    from transformers import BertConfig, BertModel

    from enginehouse_build import ModelSource

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            config = BertConfig(
                vocab_size=WORDS,
                hidden_size=width,
                num_hidden_layers=layers,
                num_attention_heads=4,
                intermediate_size=4 * width,
                max_position_embeddings=longest,
            )
            self.bert = BertModel(config, add_pooling_layer=False)

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            states = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            mask = attention_mask.unsqueeze(-1).to(states.dtype)
            mean = (states * mask).sum(1) / mask.sum(1).clamp(min=1)
            return nn.functional.normalize(mean, dim=-1)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        module = Encoder().eval()
    samples = sentences(64)
    return ModelSource(
        module=module,
        inputs={name: torch.from_numpy(array[:2]) for name, array in samples.items()},
        outputs=("embedding",),
        axes={"input_ids": {1: "sequence"}, "attention_mask": {1: "sequence"}},
        ranges={"sequence": (8, USUAL, longest)},
        samples=samples,
        calibration=sentences(64, seed=SEED + 1),
    )
