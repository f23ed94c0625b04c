"""A replica that says nothing, with calls and without: when it is doubted, and when it is given up."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import numpy as np
import pytest
from tests.unit.catalogs import until
from tests.unit.connections import TIMING, Run, connected

from enginehouse.contract.errors import EngineUnavailable, ReplicaLost
from enginehouse.contract.tensors import Computed
from enginehouse.transport import router_end as channels


def test_an_end_that_is_silent_is_given_up(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channels, "PING_S", 0.05)
    monkeypatch.setattr(channels, "SILENT_S", 0.3)

    async def forever(*_: Any) -> Computed:
        await asyncio.sleep(1)
        return {}, TIMING

    async def work() -> None:
        async with connected(forever) as (listener, channel):
            # Long in computing is not silent: the replica answers that it is there.
            await channel.infer("m@1", [{"x": np.zeros(1)}], 1, 10)
            (served,) = listener.served
            assert served.transport is not None
            served.transport.pause_reading()
            began = asyncio.get_running_loop().time()
            with pytest.raises(EngineUnavailable, match="silent for") as caught:
                await channel.infer("m@1", [{"x": np.zeros(1)}], 1, 10)
            assert asyncio.get_running_loop().time() - began < 0.9
            assert not isinstance(caught.value, ReplicaLost)

    run(work())


def test_an_end_that_no_longer_answers_comes_last_before_it_is_given_up(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, seconds in {"PING_S": 0.02, "QUIET_S": 0.04, "SUSPECT_S": 0.1, "SILENT_S": 0.4}.items():
        monkeypatch.setattr(channels, name, seconds)

    async def work() -> None:
        async with connected() as (listener, channel):
            (served,) = listener.served

            def waits() -> bool:
                return channel.wait_ms(time.monotonic(), "m@1") > 0

            assert served.transport is not None
            await asyncio.sleep(0.5)
            assert channel.is_open and not waits(), "it has nothing to do, and is there"
            served.transport.pause_reading()
            await until(waits, 0.3)
            assert channel.is_open
            served.transport.resume_reading()
            await until(lambda: not waits(), 0.3)
            served.transport.pause_reading()
            await until(lambda: not channel.is_open, 0.6)

    run(work())
