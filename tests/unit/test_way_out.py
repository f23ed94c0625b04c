"""A gate that is failed names the options of the build that widen it, and with these it is passed."""

from __future__ import annotations

import re

import numpy as np
import pytest

from enginehouse.contract.errors import ParityFailed
from enginehouse.contract.manifest import MetricRecord, Parity, Precision
from enginehouse.contract.parity import LIMITS, compare_all, gate, limits_of
from enginehouse.contract.slices import compare_slices


def option(message: str, name: str) -> float:
    found = re.search(rf"if that is good enough for you, build with .*{name}[ =]([\d.e-]+)", message)
    assert found, message
    return float(found[1])


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
@pytest.mark.parametrize("seed", range(6))
def test_the_limit_that_is_named_lets_it_pass_and_one_below_does_not(precision: Precision, seed: int) -> None:
    generator = np.random.default_rng(seed)
    want = generator.standard_normal((200, 40)).astype(np.float32)
    noise = generator.standard_normal(want.shape) * generator.uniform(0.5, 1)
    # In every other one, a row is much worse than all together.
    noise[1:] *= (1, 0.01)[seed % 2]
    got = {"y": (want + noise).astype(np.float32)}
    parity = compare_all("onnxruntime-cpu", lambda _: got, [({"x": want}, {"y": want})], LIMITS[precision].relative_l2)
    parity = parity.model_copy(update={"top1_agreement": None})
    with pytest.raises(ParityFailed) as caught:
        gate(f"onnx-{precision}", LIMITS[precision], parity)
    limit = option(str(caught.value), f"--limit {precision}")
    gate(f"onnx-{precision}", limits_of(precision, limit), parity)
    with pytest.raises(ParityFailed):
        gate(f"onnx-{precision}", limits_of(precision, limit * 0.8), parity)


@pytest.mark.parametrize("seed", range(4))
def test_the_limit_that_is_named_for_a_lost_slice_lets_it_pass(seed: int) -> None:
    generator = np.random.default_rng(seed)
    want = generator.standard_normal((32, 6)).astype(np.float32)
    want[:, :2] *= 100
    got = want.copy()
    got[:, 4] *= generator.uniform(-1, 0.2)
    _, slices = compare_slices("e", lambda _: {"y": got}, [({"x": want}, {"y": want})], 0.05, batched=True)
    with pytest.raises(ParityFailed) as caught:
        slices.gate("openvino-int8", "openvino-cpu", LIMITS["int8"])
    slices.gate("openvino-int8", "openvino-cpu", limits_of("int8", option(str(caught.value), "--limit int8")))


def parity(**changes: object) -> Parity:
    right = {"engine": "onnxruntime-cpu", "rows": (8,), "relative_l2": 0.0, "worst_row": 0.0, "cosine": 1.0}
    return Parity.model_validate({**right, "top1_agreement": None, "limit": 1e-4, **changes})


def test_a_lost_metric_names_the_drop_that_passes() -> None:
    record = MetricRecord(name="accuracy", reference=0.98, value=0.95, max_drop=0.01, rows=360)
    with pytest.raises(ParityFailed) as caught:
        gate("onnx-int8", LIMITS["int8"], parity(metric=record))
    drop = option(str(caught.value), "--max-drop")
    gate("onnx-int8", LIMITS["int8"], parity(metric=record.model_copy(update={"max_drop": drop})))


def test_where_no_option_helps_none_is_named() -> None:
    for changes in ({"differing": 0.5}, {"relative_l2": 0.1, "top1_agreement": 0.5, "top1_rows": 40}):
        with pytest.raises(ParityFailed) as caught:
            gate("onnx-fp32", LIMITS["fp32"], parity(**changes))
        assert "build with" not in str(caught.value)
