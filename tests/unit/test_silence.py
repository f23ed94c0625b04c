"""A replica that sends nothing, busy or idle: when it is suspected, and when its connection is closed."""

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


def test_a_silent_connection_is_closed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channels, "PING_S", 0.05)
    monkeypatch.setattr(channels, "SILENT_S", 0.3)

    async def forever(*_: Any) -> Computed:
        await asyncio.sleep(1)
        return {}, TIMING

    async def work() -> None:
        async with connected(forever) as (listener, channel):
            # A call that computes for long is not silence: the replica answers PINGs.
            await channel.infer("m@1", [{"x": np.zeros(1)}], 1, 10)
            (accepted,) = listener.connections
            assert accepted.transport is not None
            accepted.transport.pause_reading()
            began = asyncio.get_running_loop().time()
            with pytest.raises(EngineUnavailable, match="silent for") as caught:
                await channel.infer("m@1", [{"x": np.zeros(1)}], 1, 10)
            assert asyncio.get_running_loop().time() - began < 0.9
            assert not isinstance(caught.value, ReplicaLost)

    run(work())


def test_a_silent_replica_is_suspected_before_its_connection_is_closed(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, seconds in {"PING_S": 0.02, "QUIET_S": 0.04, "SUSPECT_S": 0.1, "SILENT_S": 0.4}.items():
        monkeypatch.setattr(channels, name, seconds)

    async def work() -> None:
        async with connected() as (listener, channel):
            (accepted,) = listener.connections

            def waits() -> bool:
                return channel.wait_ms(time.monotonic(), "m@1") > 0

            assert accepted.transport is not None
            await asyncio.sleep(0.5)
            assert channel.is_open and not waits(), "idle, but it answers PINGs"
            accepted.transport.pause_reading()
            await until(waits, 0.3)
            assert channel.is_open
            accepted.transport.resume_reading()
            await until(lambda: not waits(), 0.3)
            accepted.transport.pause_reading()
            await until(lambda: not channel.is_open, 0.6)

    run(work())
