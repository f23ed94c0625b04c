"""A request goes with others of other lengths only if its masks and values are among those that were proven."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ray import serve
from ray.serve._private.config import DeploymentConfig
from tests.pipeline import sequences
from tests.unit.padded_model import DEAR_CALLS, PADDING, ROWS, Engine, check, described, request

from enginehouse.contract.config import ModelConfig
from enginehouse.contract.signature_record import MaskKind, PaddedInput, Padding
from enginehouse.contract.tensors import Tensors, stack
from enginehouse.engines.padding import Padder
from enginehouse.pools.batching import LoadedModel
from enginehouse.tools.cli.inspect import _padded

MASK = PaddedInput(name="mask", dim=1, value=0, tells=True, mark=1)
X = PaddedInput(name="x", dim=1, value=0.0)
ALL: tuple[MaskKind, ...] = ("start", "end", "holes")


def padder(masks: tuple[MaskKind, ...] = ALL, **within: tuple[float, float]) -> Padder:
    return Padder(Padding(inputs=(X, MASK), edges=(8,), masks=masks, within=within))


def floats(*values: float) -> np.ndarray:
    return np.array([values], np.float32)


@pytest.mark.parametrize(
    ("masks", "mask", "is_covered"),
    [
        (("start",), [1, 1, 0, 0], True),
        (("start",), [1, 1, 1, 1], True),
        (("start",), [0, 0, 1, 1], False),
        (("start",), [1, 0, 1, 1], False),
        (("start", "end"), [0, 0, 1, 1], True),
        (("start", "end"), [0, 1, 1, 0], False),
        (("start", "end"), [1, 0, 0, 1], False),
        (("start", "holes"), [1, 0, 0, 1], True),
        (("start", "holes"), [0, 1, 1, 0], True),
        (("start", "holes"), [0, 0, 0, 1], False),
        (ALL, [0, 1, 0, 1], True),
        (ALL, [0, 0, 0, 0], False),
        (ALL, [0, 2, 0, 1], False),
    ],
)
def test_masks(masks: tuple[MaskKind, ...], mask: list[int], is_covered: bool) -> None:
    inputs = {"x": floats(1, 2, 3, 4), "mask": np.array([mask])}
    assert bool(padder(masks, x=(0, 9)).place(inputs).edge) == is_covered
    # Of several rows each has to be.
    beside = {"x": np.ones((2, 4), np.float32), "mask": np.array([[1, 1, 0, 0], mask])}
    assert bool(padder(masks, x=(0, 9)).place(beside).edge) == is_covered


def test_a_mask_of_more_dimensions_is_of_the_kind_of_its_positions() -> None:
    wide = MASK.model_copy(update={"dim": 3})
    for places, kind in (([1, 1, 0], "start"), ([0, 1, 1], "end"), ([1, 0, 1], "holes")):
        found = Padder(Padding(inputs=(wide,), edges=(8,), within={})).kinds({"mask": np.array([[[places]]])})
        assert found == {kind}
    # Each query has a mask of its own.
    own = {"mask": np.array([[[[1, 1, 0], [1, 0, 0]]]])}
    assert "holes" in Padder(Padding(inputs=(wide,), edges=(8,), within={})).kinds(own)


@pytest.mark.parametrize(
    ("change", "is_covered"),
    [
        (lambda x: x, True),
        (lambda x: x * 0 + 3, True),
        (lambda x: x + 3.1, False),
        (lambda x: -x - 1.1, False),
        (lambda x: np.where(x == 2, np.nan, x), False),
        (lambda x: np.where(x == 2, np.inf, x), False),
        (lambda x: (x + 3.1).astype(np.float16), False),
        (lambda x: x.astype(np.float16), True),
    ],
)
def test_values(change: Callable[[np.ndarray], np.ndarray], is_covered: bool) -> None:
    inputs = {"x": change(floats(0, 1, 2, 3)), "mask": np.ones((1, 4), np.int64)}
    assert bool(padder(x=(-1, 3)).place(inputs).edge) == is_covered


def test_values_of_inputs_that_are_not_padded_count_too() -> None:
    inputs = {"x": floats(0, 1), "mask": np.ones((1, 2), np.int64), "t": np.array([2.0])}
    assert padder(x=(0, 1), t=(0.5, 2)).place(inputs).edge
    assert not padder(x=(0, 1), t=(0.5, 2)).place({**inputs, "t": np.array([3000.0])}).edge


def test_a_bundle_of_before_is_not_padded_and_says_so() -> None:
    old = PADDING.model_copy(update={"within": None, "masks": ()})
    known, made = described(DEAR_CALLS)
    assert Padder.of(known, made, "onnxruntime-cpu") is not None
    before = made.model_copy(update={"padding": {"onnxruntime-cpu": old}})
    assert Padder.of(known, before, "onnxruntime-cpu") is None
    assert not Padder(old).place(request(9)).edge
    text = '{"inputs": [{"name": "x", "dim": 1, "value": 0}], "edges": [4]}'
    assert Padding.model_validate_json(text).within is None
    assert "build again" in _padded(old)
    assert "input_ids 0 to 40" in _padded(PADDING)
    assert "masks: start" in _padded(PADDING.model_copy(update={"masks": ("start",)}))
    assert Padding.model_validate_json(PADDING.model_dump_json()) == PADDING


def loaded(monkeypatch: pytest.MonkeyPatch, engine: Engine, **changes: Any) -> LoadedModel:
    replica = SimpleNamespace(_deployment_config=DeploymentConfig(max_ongoing_requests=256))
    monkeypatch.setattr(serve, "get_replica_context", lambda: replica)
    known, made = described(DEAR_CALLS)
    padder = Padder(PADDING.model_copy(update=changes))
    model = LoadedModel(engine, "onnxruntime-cpu", known, made, ROWS, padder=padder)
    model.set_batching(ModelConfig(name="m", version="1", batch_wait_ms=100))
    return model


@pytest.mark.parametrize(
    "changes", [{"masks": ("start", "end")}, {"within": {"input_ids": (0, sequences.WORDS - 2)}}], ids=["mask", "value"]
)
async def test_a_pool_computes_others_with_equal_lengths_only(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    engine = Engine(0.002)
    usual, other = [request(length) for length in (10, 14, 12)], [request(12), request(13), request(12)]
    for each in usual:
        each["input_ids"] %= sequences.WORDS - 1
    for each in other:
        each["attention_mask"][:] = 1
        each["attention_mask"][0, 4] = 0
        each["input_ids"][0, 0] = sequences.WORDS - 1
    model = loaded(monkeypatch, engine, **changes)
    asked = [each for pair in zip(usual, other, strict=True) for each in pair]
    check(asked, await asyncio.gather(*(model.infer([each], 1, 30) for each in asked)))
    assert sorted(engine.calls) == [(1, 13), (2, 12), (3, 16)]


async def test_one_of_several_that_a_router_sent_together_keeps_all_of_them_from_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A router that pads for no replica groups by shape alone, and only the first may be what was proven."""
    engine = Engine(0.002)
    model = loaded(monkeypatch, engine, masks=("start",))
    usual, other = request(12), request(12)
    other["attention_mask"][:] = 1
    other["attention_mask"][0, 0] = 0
    calls: list[list[Tensors]] = [[usual, other], [request(16)], [request(15)]]
    found = await asyncio.gather(*(model.infer(each, len(each), 30) for each in calls))
    check([stack(each) for each in calls], found)
    assert sorted(engine.calls) == [(2, 12), (2, 16)]
