"""Padding is right within a range of values, and for some kinds of masks: only requests within are padded."""

from __future__ import annotations

import numpy as np
import pytest

from enginehouse.engines.padding import Padder
from enginehouse_build.judge.padded_ladder import Reach

from . import padded_nets

KNOWN = padded_nets.known()


@pytest.mark.parametrize("name", KNOWN)
def test_what_may_be_padded_is_answered_as_it_is(name: str) -> None:
    net = KNOWN[name]
    found, why = net.proven()
    assert found is not None, why
    taken, faults = net.attack(found, 1500)
    assert not faults, faults[0]
    assert taken > 200


@pytest.mark.parametrize("name", KNOWN)
def test_ordinary_requests_are_padded(name: str) -> None:
    net, generator = KNOWN[name], np.random.default_rng(8)
    found, why = net.proven()
    assert found is not None, why
    for length in range(1, 40):
        request = net.usual(generator, length)
        if "ids" in request:
            request["mask"][:] = 1
            request["ids"] = np.maximum(request["ids"], 1)
        assert Padder(found).place(request).edge


@pytest.mark.parametrize("seed", range(24))
def test_of_any_pool_and_attention_only_what_is_right_is_padded(seed: int) -> None:
    net = padded_nets.made_up(seed)
    found, _ = net.proven(most=8 if seed % 3 else 32)
    if found is None:
        # Ordinary rows are answered otherwise: what hides is too small.
        return
    taken, faults = net.attack(found, 500, seed)
    assert not faults, faults[0]
    assert taken > 20


def test_most_pools_and_attentions_are_padded() -> None:
    found = [padded_nets.made_up(seed).proven()[0] for seed in range(12)]
    assert sum(each is not None for each in found) >= 9


def test_masks_that_are_harmful_are_left_out_alone() -> None:
    """The last that counts is found by their number."""

    def run(inputs: padded_nets.Inputs) -> padded_nets.Inputs:
        x, mask = inputs["x"], inputs["mask"]
        is_left = mask[:, -1].all()
        at = np.where(is_left, x.shape[1] - 1, mask.sum(1) - 1)
        return {"y": x[np.arange(len(x)), at]}

    net = padded_nets.Net(run, {"x": padded_nets.features()})
    found, why = net.proven()
    if found is None:
        assert "otherwise than alone" in why
        return
    assert "end" not in found.masks
    assert not net.attack(found, 500)[1]


def test_an_end_is_kept_well_before_what_failed() -> None:
    reach = Reach.of("x", np.array([[0.5, 2.0]], np.float32), None)
    assert reach.ends() == (0.5, 2.0)
    assert reach.high.tried[:4] == [2.0, 4.0, 8.0, 16.0]
    assert 0.0 in reach.low.tried
    assert min(reach.low.tried) < -1e38
    for step in range(1, 6):
        reach.high.accept(step)
    failed = reach.high.tried[6]
    reach.close({reach.high}, 6)
    assert reach.ends()[1] * 16 <= failed
    assert not reach.high.is_new(7)
    reach = Reach.of("v", np.array([[3, -500]], np.int64), None)
    assert (min(reach.low.tried), max(reach.high.tried)) == (-(2**63), 2**63 - 1)
    reach = Reach.of("pixels", np.array([[3, 200]], np.uint8), None)
    assert (min(reach.low.tried), max(reach.high.tried)) == (0, 255)
