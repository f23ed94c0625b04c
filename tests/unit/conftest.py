"""What several unit tests begin with."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
import uvloop
from tests.unit.connections import Run, bounded


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Iterator[Run]:
    with asyncio.Runner(loop_factory=request.param) as runner:
        yield lambda work: runner.run(bounded(work))
