"""Masked models in numpy whose padding is right within a range of values only, and requests of all kinds for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from enginehouse.contract.manifest import Axis
from enginehouse.contract.parity import LIMITS, first_difference
from enginehouse.contract.signature_record import Padding
from enginehouse.contract.tensors import Domain, FreeDim, Signature, Tensors, TensorSpec
from enginehouse.engines.padding import Padder
from enginehouse_build.inputs.padding import paddings
from enginehouse_build.judge.padding import Proof
from enginehouse_build.reference.conditioning import Rounding

from .graphs import Inputs

WIDTH, LONGEST, COUNT, USUAL = 4, 64, 48, 12
_GENERATOR = np.random.default_rng(11)
_Q, _K, _V = _GENERATOR.standard_normal((3, WIDTH, WIDTH)) / 2
TABLE = _GENERATOR.standard_normal((50, WIDTH))


@dataclass(frozen=True)
class Net:
    """A model, the samples of its build beside `mask`, and which of its inputs are looked up in a table."""

    run: Callable[[Inputs], Inputs]
    samples: Inputs
    domains: dict[str, Domain] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.samples.setdefault("mask", _prefixes(np.random.default_rng(1)))

    @property
    def signature(self) -> Signature:
        specs = [TensorSpec(name, a.dtype, (None, *self._rest(a)), self.domains.get(name)) for name, a in self._items()]
        free = (FreeDim("s", self._places, (1, LONGEST)),)
        return Signature(tuple(specs), (TensorSpec("y", np.dtype(np.float32), (None, None)),), free=free)

    def proven(self, most: int = 32) -> tuple[Padding | None, str]:
        """What the build lets pass."""
        axis = Axis(name="s", min=1, opt=USUAL, max=LONGEST, dims=self._places)
        signature, axes = self.signature, (axis,)
        proof = Proof(signature, axes, self.samples, self.run, Rounding(Path("none"), 1), most, {})
        with np.errstate(all="ignore"):
            return proof.of(paddings(signature, axes, self.samples, None), self.run, LIMITS["fp32"], {})

    def attack(self, padding: Padding, count: int, seed: int = 0) -> tuple[int, list[str]]:
        """Of so many requests of all kinds, how many may be padded, and those that are then answered otherwise."""
        padder, generator, taken, faults = Padder(padding), np.random.default_rng(seed), 0, []
        for _ in range(count):
            request = self.request(generator)
            if not padder.place(request).edge:
                continue
            taken += 1
            length = padder.length(request)
            edge = int(generator.choice([edge for edge in padding.edges if edge >= length]))
            with np.errstate(all="ignore"):
                want, got = self.run(request), self.run(dict(padder.joined([request], edge)))
            if fault := first_difference(padder.cut(got, length), want, 1e-3, 1e-3):
                faults.append(f"{fault}: {request}")
        return taken, faults

    def usual(self, generator: np.random.Generator, length: int) -> Inputs:
        """A request like the samples, of another length."""
        at = int(generator.integers(COUNT))
        row = {name: array[at : at + 1] for name, array in self.samples.items()}
        row = {name: np.resize(a, (1, length, *a.shape[2:])) if a.ndim > 1 else a for name, a in row.items()}
        return row | {"mask": (np.arange(length) < generator.integers(1, length + 1))[None].astype(np.int64)}

    def request(self, generator: np.random.Generator) -> Inputs:
        """One like the samples, louder, fainter, of other signs, of one value, or with zeros; under any mask."""
        length = int(generator.integers(1, 25))
        row = self.usual(generator, length)
        for name, array in row.items():
            if name == "mask":
                row[name] = _mask(generator, length)
            elif name in self.domains:
                ids = generator.integers(*self._drawn(name, generator), array.shape)
                row[name] = np.where(generator.random(array.shape) < generator.choice([0, 0.3, 0.9]), 0, ids)
            elif generator.random() < 0.7:
                row[name] = _otherwise(generator, array)
        return row

    def _items(self) -> list[tuple[str, np.ndarray]]:
        return list(self.samples.items())

    def _drawn(self, name: str, generator: np.random.Generator) -> tuple[int, int]:
        """All of the domain, or what usual ids are of it."""
        return self.domains[name].low if generator.random() < 0.2 else 0, self.domains[name].high

    @property
    def _places(self) -> tuple[tuple[str, int], ...]:
        return tuple((name, 1) for name, array in self._items() if array.ndim > 1)

    @staticmethod
    def _rest(array: np.ndarray) -> tuple[int | None, ...]:
        return (None, *array.shape[2:]) if array.ndim > 1 else ()


def _prefixes(generator: np.random.Generator) -> np.ndarray:
    return (np.arange(USUAL) < generator.integers(3, USUAL + 1, (COUNT, 1))).astype(np.int64)


def _mask(generator: np.random.Generator, length: int) -> np.ndarray:
    mask = np.arange(length) < generator.integers(1, length + 1)
    kind = generator.integers(4)
    if kind == 0:
        mask[:] = True
    elif kind == 1:
        mask = mask[::-1]
    elif kind == 2:
        mask = generator.random(length) < 0.5
        mask[generator.integers(length)] = True
    return mask[None].astype(np.int64)


def _otherwise(generator: np.random.Generator, array: np.ndarray) -> np.ndarray:
    kind, by = generator.integers(5), 2.0 ** generator.integers(-20, 20)
    wide = array.astype(np.float64)
    if kind == 0:
        wide = wide * by
    elif kind == 1:
        wide = -np.abs(wide) * (by if generator.random() < 0.5 else 1)
    elif kind == 2:
        wide = wide * generator.choice([-1, 1], wide.shape) * by
    elif kind == 3 and wide.ndim > 1:
        # The same at each position, of either sign.
        wide = np.broadcast_to(wide[:, :1] * generator.choice([-1, 1], wide[:, :1].shape) * by, wide.shape)
    else:
        wide = np.where(generator.random(wide.shape) < 0.5, 0, wide)
    return np.clip(wide, -(2.0**30), 2.0**30).astype(array.dtype)


def _softmax(scores: np.ndarray) -> np.ndarray:
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.asarray(weights / weights.sum(-1, keepdims=True))


def _answer(y: np.ndarray) -> Inputs:
    return {"y": y.astype(np.float32)}


def temperature(x: np.ndarray) -> Net:
    def run(inputs: Inputs) -> Inputs:
        inner, hidden = np.tanh(inputs["x"] @ _Q), (inputs["mask"][:, None, :] - 1) * 1e4
        weights = _softmax((inner @ inner.swapaxes(1, 2) + hidden) / inputs["t"].astype(np.float64)[:, None, None])
        return _answer(weights @ (inputs["x"] @ _V))

    return Net(run, {"x": x, "t": np.random.default_rng(2).uniform(0.5, 2, COUNT).astype(np.float32)})


def attention(x: np.ndarray, hides: float) -> Net:
    def run(inputs: Inputs) -> Inputs:
        wide = inputs["x"].astype(np.float64)
        scores = (wide @ _Q) @ (wide @ _K).swapaxes(1, 2) + (inputs["mask"][:, None, :] - 1) * hides
        return _answer(_softmax(scores) @ (wide @ _V))

    return Net(run, {"x": x})


def times_mask(x: np.ndarray) -> Net:
    """The largest of what counts, where the rest is made 0."""

    def run(inputs: Inputs) -> Inputs:
        mask = inputs["mask"].reshape(*inputs["mask"].shape, *[1] * (inputs["x"].ndim - 2))
        top = (inputs["x"] * mask.astype(inputs["x"].dtype)).max(1)
        return {"y": top.reshape(len(top), -1)}

    return Net(run, {"x": x})


def first_pad() -> Net:
    """The token before the first id 0, as classifiers on top of decoders find the last one."""

    def run(inputs: Inputs) -> Inputs:
        ids = inputs["ids"]
        at = ((ids == 0).argmax(-1) - 1) % ids.shape[1]
        states = np.tanh(np.cumsum(TABLE[ids] * inputs["mask"][..., None], 1) + TABLE[ids])
        return _answer(states[np.arange(len(ids)), at])

    mask = _prefixes(np.random.default_rng(1))
    ids = np.random.default_rng(3).integers(1, len(TABLE), (COUNT, USUAL)) * mask
    return Net(run, {"ids": ids, "mask": mask}, {"ids": Domain(-len(TABLE), len(TABLE))})


def features(seed: int = 4, above_0: bool = False) -> np.ndarray:
    x = np.random.default_rng(seed).standard_normal((COUNT, USUAL, WIDTH), np.float32)
    return np.abs(x) + np.float32(0.1) if above_0 else x


def known() -> dict[str, Net]:
    """Those with which wrong answers were published."""
    whole = np.random.default_rng(5).integers(1, 500, (COUNT, USUAL))
    return {
        "a temperature": temperature(features()),
        "scores as large as what hides": attention(features(), 1e4),
        "the largest of negative numbers": times_mask(features(above_0=True)),
        "the largest of negative whole numbers": times_mask(whole),
        "the first padding id": first_pad(),
    }


def made_up(seed: int) -> Net:
    """A pool or an attention that hides with some constant, after an input without positions has moved the values."""
    generator = np.random.default_rng((7, seed))
    hides = 10.0 ** generator.uniform(1.2, 8)
    above_0, kind, moves = bool(generator.integers(2)), seed % 6, int(generator.integers(4))
    x = features(seed, above_0) * np.float32(2.0 ** generator.integers(-3, 3))

    def run(inputs: Inputs) -> Inputs:
        wide, mask = inputs["x"].astype(np.float64), inputs["mask"][..., None].astype(np.float64)
        by = inputs.get("by", np.ones(len(wide))).astype(np.float64)[:, None, None]
        wide = {1: wide * by, 2: wide + by, 3: wide / np.maximum(np.abs(by), 1e-9)}.get(moves, wide)
        if kind == 0:
            return _answer((wide * mask).max(1))
        if kind == 1:
            return _answer((wide + (mask - 1) * hides).max(1))
        if kind == 2:
            return _answer(np.where(mask > 0, wide, hides).min(1))
        if kind == 3:
            return _answer((_softmax((wide + (mask - 1) * hides).swapaxes(1, 2)).swapaxes(1, 2) * wide).sum(1))
        if kind == 4:
            return _answer(np.where(mask > 0, np.abs(wide), 0).max(1) + (wide * mask).min(1))
        scores = np.tanh(wide @ _Q) @ wide.swapaxes(1, 2) * np.abs(by) + (mask.swapaxes(1, 2) - 1) * hides
        return _answer(_softmax(scores) @ wide)

    samples: Tensors = {"x": x}
    if moves or kind == 5:
        samples = {**samples, "by": generator.uniform(0.5, 2, COUNT).astype(np.float32)}
    return Net(run, dict(samples))
