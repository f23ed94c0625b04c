"""What a router knows of what others have counted: each once, never less than before, within a bounded time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.unit.connections import connected

from enginehouse.counts import node, rows
from enginehouse.counts.ledger import Ledger
from enginehouse.counts.node import Told
from enginehouse.routing import replicas
from enginehouse.routing.counting import gathering
from enginehouse.routing.counting.gathering import Gathering

KEY = ("refused", "m", "1", "x")


def told(place: str, at: int, count: int) -> list[Any]:
    return Told(place, at, {KEY: [count, *[0] * (rows.WIDTH - 1)]}).plain()


class Broadcast:
    """The handle of the deployed routers, which answer as they are told to."""

    is_initialized = True

    def __init__(self, *answers: Any, after_s: float = 0.0) -> None:
        self.answers = answers
        self.after_s = after_s

    def broadcast(self, method: str, known: Sequence[str]) -> Any:
        assert (method, known) == ("counted", ["here"])

        async def results_async(**_: Any) -> list[Any]:
            await asyncio.sleep(self.after_s)
            return list(self.answers)

        return SimpleNamespace(results_async=results_async)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Gathering:
    monkeypatch.setattr(gathering, "WITHIN_S", 0.2)
    monkeypatch.setattr(replicas, "of_pool", lambda *_: [])
    ledger = Ledger(tmp_path)
    ledger.row(*KEY)[0] += 1
    return Gathering(ledger, "here", ["pool"])


async def count(here: Gathering) -> int:
    return (await here.all())[KEY][0]


async def test_each_place_is_counted_once_whoever_tells_of_it(here: Gathering) -> None:
    routers: Any = Broadcast(
        [told("there", 5, 10), told("here", 1, 1)],
        [told("there", 9, 12), told("client/1", 3, 100)],
        RuntimeError("gone"),
    )
    here._routers = routers
    for _ in range(3):
        assert await count(here) == 1 + 12 + 100
    here.learn(told("client/1", 4, 101))
    here.learn(told("client/1", 2, 7))
    assert await count(here) == 1 + 12 + 101


async def test_what_is_older_or_does_not_answer_takes_nothing_away(here: Gathering) -> None:
    routers: Any = Broadcast([told("there", 5, 10)])
    here._routers = routers
    assert await count(here) == 11
    routers.answers = ([told("there", 4, 8)],)
    assert await count(here) == 11
    routers.after_s = 60
    began = time.monotonic()
    assert await count(here) == 11
    assert time.monotonic() - began < 1


async def test_a_router_tells_others_all_that_it_knows(here: Gathering) -> None:
    here.learn(told("lost", 5, 10))
    places = {plain[0] for plain in await here.told([])}
    assert places == {"here", "lost"}
    assert {plain[0] for plain in await here.told(["here"])} == {"lost"}, "who is on this node has read it"


async def test_whoever_asks_has_what_was_counted_before(here: Gathering) -> None:
    routers: Any = Broadcast(after_s=0.05)
    here._routers = routers
    first = asyncio.create_task(here.all())
    # It has read its own node by now, and waits for the routers.
    await asyncio.sleep(0.03)
    here._ledger.row(*KEY)[0] += 1
    second, third = await asyncio.gather(here.all(), here.all())
    assert (await first)[KEY][0] == 1
    assert second[KEY][0] == third[KEY][0] == 2
    assert second is third, "those who ask at once are told once"


async def test_a_replica_tells_of_its_node_and_one_of_the_release_before_of_nothing(
    here: Gathering, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here._routers = Broadcast()  # type: ignore[assignment]
    (tmp_path / "there").mkdir()
    other = Ledger(tmp_path / "there")
    other.row(*KEY)[0] += 20

    async def counted() -> list[Any]:
        return node.read(other, "there").plain()

    async with connected() as (listener, channel):
        listener.counted = counted
        replica = SimpleNamespace(node="there", channel=channel)
        monkeypatch.setattr(replicas, "of_pool", lambda *_: [replica])
        assert await count(here) == 21
        channel._tells_counts = False
        other.row(*KEY)[0] += 1
        assert await count(here) == 21
        channel._tells_counts = True
        monkeypatch.setattr(gathering, "EVERY_S", 0.02)
        monkeypatch.setattr(gathering, "ALL_ROUTERS", 1_000)
        here.begin()
        await asyncio.sleep(0.2)
        monkeypatch.setattr(replicas, "of_pool", lambda *_: [])
        assert await count(here) == 22, "it was asked before anyone wanted to know, and is gone now"
        assert here._keeper is not None
        here._keeper.cancel()
        # Nothing of it is taken for a call.
        assert not listener.calls
        listener.counted = None
        assert await channel.counts() is None
