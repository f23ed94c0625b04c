"""Scorers' own engines of known speeds, whatever the machine; one that is stuck, and one that cannot be loaded."""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass
from pathlib import Path

import ray

from enginehouse.contract.errors import EngineUnavailable
from enginehouse.contract.tensors import Tensors
from enginehouse.faces.scoring.answering import Answered
from enginehouse.faces.scoring.ways.via_engines import OwnEngine, OwnEngineOf

#: The label of nodes that each answer names as its backend, in the place of the engine.
_LABEL = "enginehouse.io/accelerator"


@dataclass(frozen=True)
class PacedOf:
    """Makes a `Paced` when called; picklable."""

    of: OwnEngineOf
    row_s: float
    #: Where each engine writes when it computed, a line for each call: from and to, in seconds of `time.monotonic`.
    log: Path | None = None

    def __call__(self) -> Paced:
        return Paced(self.of(), self.row_s, self.log)


class Paced:
    """`engine`, whose calls take `row_s` a row one after the other; answers name pool and label of the node."""

    def __init__(self, engine: OwnEngine, row_s: float, log: Path | None = None) -> None:
        self._engine, self._row_s = engine, row_s
        self._one = asyncio.Lock()
        me = ray.get_runtime_context().get_node_id()
        self._label = next(node["Labels"].get(_LABEL) for node in ray.nodes() if node["NodeID"] == me)
        self.batch_rows, self.in_flight = 10, engine.in_flight
        self._log = log / f"{self._label}-{os.getpid()}" if log is not None else None

    async def answer(self, inputs: Tensors) -> Answered:
        async with self._one:
            began = time.monotonic()
            answered = await self._engine.answer(inputs)
            # Until a time, not for one: a sleep is always some longer.
            await asyncio.sleep(began + self._row_s * len(inputs["x"]) - time.monotonic())
            if self._log is not None:
                with self._log.open("a") as log:
                    log.write(f"{began} {time.monotonic()}\n")
        return Answered(answered.outputs, f"{answered.backend} on {self._label}", answered.version)

    def close(self) -> None:
        self._engine.close()


@dataclass(frozen=True)
class StuckOnceOf(PacedOf):
    """As it, but the first engine of all is stuck at its first call; `marker` is a file that says that it was."""

    marker: Path = Path()

    def __call__(self) -> Paced:
        return StuckOnce(self)


class StuckOnce(Paced):
    """See `StuckOnceOf`."""

    def __init__(self, made: StuckOnceOf) -> None:
        super().__init__(made.of(), made.row_s)
        self._marker, self._is_stuck = made.marker, False

    async def answer(self, inputs: Tensors) -> Answered:
        if not self._is_stuck and not self._marker.exists():
            self._marker.touch()
            self._is_stuck = True
        if self._is_stuck:
            raise EngineUnavailable("onnxruntime-cpu", "one call takes 61 s")
        return await super().answer(inputs)


def broken() -> Paced:
    """Makes nothing."""
    raise EngineUnavailable("openvino-cpu", "no driver")
