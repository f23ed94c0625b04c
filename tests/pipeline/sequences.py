"""Models of sequences with a mask, in numpy: those whose answers padding leaves alone, and those that it spoils."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .graphs import Inputs

WORDS, WIDTH = 40, 12
_GENERATOR = np.random.default_rng(5)
TABLE, PLACES = _GENERATOR.standard_normal((WORDS, WIDTH)), _GENERATOR.standard_normal((600, WIDTH)) / 2
Q, K, V, KERNEL = _GENERATOR.standard_normal((4, WIDTH, WIDTH)) / WIDTH**0.5

Model = Callable[[Inputs], Inputs]


def attention(x: np.ndarray, mask: np.ndarray, out: float = -1e9) -> np.ndarray:
    """One head, whose queries see what `mask` (0 or 1) marks; others have `out` added to their scores."""
    scores = (x @ Q) @ (x @ K).swapaxes(1, 2) / WIDTH**0.5 + (1 - mask[:, None, :]) * out
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return x + (weights / weights.sum(-1, keepdims=True)) @ (x @ V)


def mean(x: np.ndarray, mask: np.ndarray) -> np.ndarray:
    return np.asarray((x * mask[..., None]).sum(1) / np.maximum(mask.sum(1, keepdims=True), 1))


def parts(inputs: Inputs) -> tuple[np.ndarray, np.ndarray, int]:
    """Words with their places, the mask as floats, and the length."""
    ids = inputs["input_ids"]
    length = ids.shape[1]
    return TABLE[ids] + PLACES[:length], inputs["attention_mask"].astype(np.float64), length


def convolved(x: np.ndarray) -> np.ndarray:
    around = np.pad(x, ((0, 0), (1, 1), (0, 0)))
    return np.tanh(around[:, :-2] @ KERNEL + around[:, 1:-1] + around[:, 2:] @ V)


def recurrent(x: np.ndarray) -> np.ndarray:
    states, state = [], np.zeros((len(x), WIDTH))
    for at in range(x.shape[1]):
        state = np.tanh(x[:, at] + state @ K)
        states.append(state)
    return np.stack(states, 1)


def pooled(inner: Callable[[np.ndarray, np.ndarray, int], np.ndarray]) -> Model:
    """The mean of `inner` over what the mask marks."""

    def run(inputs: Inputs) -> Inputs:
        x, mask, length = parts(inputs)
        return {"y": mean(inner(x, mask, length), mask).astype(np.float32)}

    return run


def whole(inner: Callable[[np.ndarray, np.ndarray, int], np.ndarray]) -> Model:
    """All of `inner`."""
    return lambda inputs: {"y": inner(*parts(inputs)).astype(np.float32)}


def _last_that_counts(x: np.ndarray, mask: np.ndarray, _: int) -> np.ndarray:
    return np.asarray(x[np.arange(len(x)), mask.sum(1).astype(int) - 1])


HARMLESS: dict[str, Model] = {
    "masked attention, mean of what counts": pooled(lambda x, mask, _: attention(x, mask)),
    "masked attention, all states": whole(lambda x, mask, _: attention(x, mask)),
    "attention of each to each": whole(lambda x, mask, _: (x @ Q) @ x.swapaxes(1, 2)),
    "convolution over what is masked before": whole(lambda x, mask, _: convolved(x * mask[..., None])),
    "forward recurrence, which ignores its mask": whole(lambda x, mask, _: recurrent(x)),
    "the last that counts": whole(lambda x, mask, _: _last_that_counts(attention(x, mask), mask, 0)),
    "largest of what counts": whole(lambda x, mask, _: np.where(mask[..., None] > 0, attention(x, mask), -9).max(1)),
}
HARMFUL: dict[str, Model] = {
    "the mask is ignored": pooled(lambda x, mask, _: attention(x, np.ones_like(mask))),
    "the mask is weak": pooled(lambda x, mask, _: attention(x, mask, -7.0)),
    "the mean of all": whole(lambda x, mask, _: attention(x, mask).mean(1)),
    "the sum of what counts, by the length": whole(lambda x, mask, n: (x * mask[..., None]).sum(1) / n),
    "the largest of all": whole(lambda x, mask, _: attention(x, mask).max(1)),
    "convolution over time": whole(lambda x, mask, _: convolved(x)),
    "convolution over time, mean of what counts": pooled(lambda x, mask, _: convolved(x)),
    "backward recurrence": pooled(lambda x, mask, _: recurrent(x[:, ::-1])[:, ::-1]),
    "the last of all": whole(lambda x, mask, _: recurrent(x)[:, -1]),
    "places from the end": pooled(lambda x, mask, n: attention(x + PLACES[:n][::-1], mask)),
    "a scale of the length": whole(lambda x, mask, n: mean(attention(x, mask), mask) * np.log(n + 1)),
    "normalised over time": pooled(lambda x, mask, _: (x - x.mean(1, keepdims=True)) / (x.std(1, keepdims=True) + 1)),
    "twice as long": whole(lambda x, mask, _: np.repeat(x, 2, axis=1)),
    "half as long": whole(lambda x, mask, _: x[:, ::2]),
    "whether there is anything that does not count": whole(lambda x, mask, _: mean(x, mask) + 1 - mask.min(1)[:, None]),
    "where the first 0 is": lambda inputs: {"y": np.argmax(inputs["input_ids"] == 0, 1).astype(np.float32)[:, None]},
    "how many do not count": whole(lambda x, mask, _: mean(x, mask) * (1 + (1 - mask).sum(1)[:, None])),
    "softmax over time": whole(lambda x, mask, _: np.exp(x) / np.exp(x).sum(1, keepdims=True)),
}
