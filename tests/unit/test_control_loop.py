"""Serve's controller makes its rounds seldom while nothing is asked for, and as often as always otherwise."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest
from ray.serve._private import constants, controller

from enginehouse.contract.config import ROUNDS_AT_REST
from enginehouse.pools import control_loop, nodes
from enginehouse.pools.autoscaling import BUSY, HardwareAndLoad
from enginehouse.pools.control_loop import ControlLoop

POOL = HardwareAndLoad(["cpu"], min_replicas=1, max_replicas=1, target_busy=0.8)


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> ControlLoop:
    monkeypatch.setenv(ROUNDS_AT_REST, "0.7")
    monkeypatch.setattr(controller, "CONTROL_LOOP_INTERVAL_S", constants.CONTROL_LOOP_INTERVAL_S)
    monkeypatch.setattr(control_loop, "QUIET_S", 0.05)
    monkeypatch.setattr(control_loop, "of_this_process", ControlLoop())
    monkeypatch.setattr(nodes, "count_with", lambda _: 1)
    return control_loop.of_this_process


def decide(replicas: int, busy: float) -> None:
    loads: dict[str, Any] = {BUSY: {"a": busy}}
    POOL(
        SimpleNamespace(
            current_num_replicas=replicas,
            target_num_replicas=1,
            total_num_requests=0,
            aggregated_metrics=loads,
            policy_state={},
        )
    )


def interval() -> float:
    return float(controller.CONTROL_LOOP_INTERVAL_S)


def test_rounds_are_seldom_at_rest_and_frequent_with_work_or_a_replica_too_few(loop: ControlLoop) -> None:
    usual = constants.CONTROL_LOOP_INTERVAL_S
    decide(1, 0.0)
    assert interval() == usual
    time.sleep(0.06)
    decide(1, 0.0)
    assert interval() == 0.7
    for replicas, busy in ((0, 0.0), (1, 0.2)):
        decide(replicas, busy)
        assert interval() == usual
        time.sleep(0.06)
        decide(1, 0.0)
        assert interval() == 0.7


def test_without_the_variable_they_are_as_frequent_as_always(
    loop: ControlLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(ROUNDS_AT_REST)
    monkeypatch.setattr(control_loop, "of_this_process", ControlLoop())
    time.sleep(0.06)
    decide(1, 0.0)
    assert interval() == constants.CONTROL_LOOP_INTERVAL_S


def test_serve_reads_the_interval_in_every_round() -> None:
    rounds = controller.ServeController.run_control_loop
    code = getattr(rounds, "__wrapped__", rounds).__code__
    assert "CONTROL_LOOP_INTERVAL_S" in code.co_names
