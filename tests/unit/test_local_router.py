"""The router in a client's process: what it has begun ends when its loop does, and nothing of it is left behind."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from tests.unit.catalogs import until

from enginehouse.contract.errors import EngineUnavailable
from enginehouse.faces.python import client, local_router
from enginehouse.faces.python.client import Client
from enginehouse.faces.python.local_router import LocalRouter
from enginehouse.routing.hints import NO_HINTS

X = {"x": np.ones((1, 4), np.float32)}


class Deployed:
    """The deployed routers as a handle shows them: they publish nothing, and answer only when they are let."""

    def __init__(self) -> None:
        self.asked = 0
        self.answers = False

    @property
    def answer(self) -> Deployed:
        return self

    @property
    def served(self) -> Deployed:
        raise ConnectionError("nothing is published")

    async def remote(self, *_: object) -> dict[str, Any]:
        self.asked += 1
        await until(lambda: self.answers, 60)
        return {"outputs": X}


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The Ray job of this process, as its only element; leaving it ends the routers of the test."""
    job = ["job"]
    monkeypatch.setattr(local_router, "ray_job", lambda: job[0])
    monkeypatch.setattr(local_router, "_routers", [])
    yield job
    job[0] = ""
    wait_until(lambda: not router_threads())


def router_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "enginehouse-router"]


def wait_until(condition: Callable[[], object]) -> None:
    give_up = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.01)


def test_what_is_under_way_when_the_job_is_left_fails_and_nothing_is_left(job: list[str]) -> None:
    deployed = Deployed()
    router = LocalRouter(lambda: deployed)  # type: ignore[arg-type, return-value]
    answer = router.submit("m", X, NO_HINTS, None)
    wait_until(lambda: deployed.asked)
    job[0] = ""
    with pytest.raises(EngineUnavailable, match="left its Ray job"):
        answer.result(5)
    wait_until(lambda: not router_threads())
    assert router._loop.is_closed()
    with pytest.raises(EngineUnavailable, match="left its Ray job"):
        router.submit("m", X, NO_HINTS, None)


async def test_neither_does_a_caller_with_a_loop_wait_for_ever(job: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    deployed = Deployed()
    monkeypatch.setattr(client.deploy, "router_handle", lambda: deployed)
    asks = Client()
    task = asyncio.create_task(asks.answer_async("m", X))
    await until(lambda: deployed.asked == 1)
    job[0] = ""
    with pytest.raises(EngineUnavailable, match="left its Ray job"):
        await asyncio.wait_for(task, 5)
    # In its next job it has another router.
    job[0], deployed.answers = "next", True
    assert (await asyncio.wait_for(asks.answer_async("m", X), 5))["outputs"] == X


async def test_who_gives_up_is_cancelled_and_nobody_else(job: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    deployed = Deployed()
    monkeypatch.setattr(client.deploy, "router_handle", lambda: deployed)
    asks = Client()
    tasks = [asyncio.create_task(asks.answer_async("m", X)) for _ in range(2)]
    await until(lambda: deployed.asked == 2)
    tasks[0].cancel()
    with pytest.raises(asyncio.CancelledError):
        await tasks[0]
    deployed.answers = True
    assert (await asyncio.wait_for(tasks[1], 5))["outputs"] == X
