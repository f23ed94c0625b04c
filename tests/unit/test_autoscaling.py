"""The target number of replicas follows what the engines computed and the demand at the routers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from enginehouse.pools import autoscaling
from enginehouse.pools import nodes as node_facts
from enginehouse.pools.autoscaling import BUSY, DEMAND, MODELS, HardwareAndLoad

POOL = HardwareAndLoad(["cpu"], min_replicas=1, max_replicas=4, target_busy=0.8)
TO_ZERO = HardwareAndLoad(["cpu"], min_replicas=0, max_replicas=4, target_busy=0.8)


@pytest.mark.parametrize(
    ("seconds", "now", "wanted"),
    [
        (0.0, 1, 1),
        (0.8, 1, 1),
        (1.0, 1, 2),
        (1.6, 2, 2),
        (2.0, 2, 3),
        (3.2, 1, 4),
        (9.0, 1, 4),
        # Fewer only when those are well below the target.
        (0.79, 2, 2),
        (0.7, 2, 1),
        (0.0, 4, 1),
    ],
)
def test_there_are_as_many_as_the_work_takes_at_the_target(seconds: float, now: int, wanted: int) -> None:
    assert POOL.wanted(seconds, now) == wanted


def test_a_load_at_the_border_does_not_have_replicas_come_and_go() -> None:
    seen, now = [], 1
    for load in (1.58, 1.62, 1.59, 1.61, 1.58, 1.62):
        now = POOL.wanted(load, now)
        seen.append(now)
    assert seen == [2, 3, 3, 3, 3, 3]


def context(replicas: int, calls: float = 0, **metrics: dict[str, float]) -> Any:
    return SimpleNamespace(
        current_num_replicas=replicas,
        target_num_replicas=replicas,
        total_num_requests=calls,
        aggregated_metrics=metrics,
        policy_state={},
    )


def decided(pool: HardwareAndLoad, *arguments: Any, **metrics: dict[str, float]) -> int | float:
    return pool(context(*arguments, **metrics))[0]


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    count = [1]
    monkeypatch.setattr(node_facts, "count_with", lambda _: count[0])
    assert autoscaling.nodes is node_facts
    return count


def test_demand_counts_when_the_engines_are_saturated(nodes: list[int]) -> None:
    assert decided(POOL, 1, **{BUSY: {"a": 1.0}, DEMAND: {"a": 2.9}}) == 4
    assert decided(POOL, 2, **{BUSY: {"a": 0.9, "b": 0.6}, DEMAND: {"a": 0.2, "b": 0.1}}) == 2
    nodes[0] = 0
    assert decided(POOL, 2, **{BUSY: {"a": 1.0}}) == 0


def test_a_pool_without_minimum_scales_to_zero_until_it_is_called(nodes: list[int]) -> None:
    assert decided(TO_ZERO, 0) == 0
    assert decided(TO_ZERO, 0, 1) == 1
    assert decided(TO_ZERO, 1, 1, **{BUSY: {"a": 0.0}, DEMAND: {"a": 0.0}}) == 1
    assert decided(TO_ZERO, 1, 0, **{BUSY: {"a": 0.01}, DEMAND: {"a": 0.0}}) == 1
    assert decided(TO_ZERO, 1, 0, **{BUSY: {"a": 0.0}, DEMAND: {"a": 0.0}}) == 0
    assert decided(POOL, 0) == 1


@pytest.mark.parametrize("pool", [POOL, HardwareAndLoad(["cpu"], 1, 1, target_busy=0.8)])
def test_a_pool_with_nothing_to_load_has_no_replica_until_it_is_called(nodes: list[int], pool: HardwareAndLoad) -> None:
    def decide(state: dict[str, Any], *arguments: Any, **metrics: dict[str, float]) -> tuple[int | float, Any]:
        asked = context(*arguments, **metrics)
        asked.policy_state = state
        return pool(asked)

    idle = {BUSY: {"a": 0.0}, DEMAND: {"a": 0.0}}
    assert decide({}, 0) == (1, {})
    # Of one that has not reported yet nothing is known, and one model of several is enough.
    assert decide({}, 1) == (1, {})
    assert decide({}, 2, **idle, **{MODELS: {"a": 0.0, "b": 0.3}})[0] >= 1
    wanted, state = decide({}, 1, **idle, **{MODELS: {"a": 0.0}})
    assert wanted == 0
    # It stays at none without reports, and the call of a router brings it back.
    assert decide(state, 0) == (0, state)
    wanted, state = decide(state, 0, 1)
    assert (wanted, state) == (1, {})
    assert decide(state, 0) == (1, {})


def test_a_pool_that_starts_nodes_wants_a_replica_for_ray_to_start_one(nodes: list[int]) -> None:
    starts = HardwareAndLoad(["gpu"], min_replicas=0, max_replicas=4, target_busy=0.8, starts_nodes=True)
    nodes[0] = 0
    assert (decided(starts, 0), decided(starts, 0, 1), decided(TO_ZERO, 0, 1)) == (0, 1, 0)
