"""Steps of the tests, found by name in a process of their own: what one may do to it, and measuring quickly."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from enginehouse.contract.errors import BuildError, ConversionFailed, EnginehouseError
from enginehouse.contract.manifest import EngineKind
from enginehouse_build.inputs.last_words import telling
from enginehouse_build.judge import stopwatch


def add(left: int, right: int) -> int:
    print("adding")
    return left + right


def refuse(why: str) -> None:
    raise ConversionFailed(why)


def stumble() -> None:
    {}["missing"]


def die(by: signal.Signals) -> None:
    os.kill(os.getpid(), by)
    time.sleep(60)


def leave(code: int) -> None:
    print("so long", file=sys.stderr, flush=True)
    os._exit(code)


def hang(pids: Path) -> None:
    """Write down the ids of this process and of one it started, and wait."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    temporary = pids.with_suffix(".partial")
    temporary.write_text(f"{os.getpid()} {child.pid}")
    temporary.rename(pids)
    time.sleep(60)


def grow(mib: int) -> None:
    data = bytearray(mib << 20)
    data[:: 1 << 12] = b"x" * len(data[:: 1 << 12])
    time.sleep(60)


def die_within(words: Sequence[str], done: Sequence[str], by: signal.Signals) -> None:
    """Say that `words` are done, each within the one before, that `done` were done in these, and die."""
    with ExitStack() as stack:
        for word in words:
            stack.enter_context(telling(word))
        for word in done:
            with telling(word):
                pass
        die(by)


def verify_where_loading_dies(*arguments: Any) -> Any:
    return _verify_with_calls(None, *arguments)


def verify_where_first_calls_die(*arguments: Any) -> Any:
    return _verify_with_calls(0, *arguments)


def verify_where_later_calls_die(*arguments: Any) -> Any:
    return _verify_with_calls(4, *arguments)


def _verify_with_calls(calls: int | None, *arguments: Any) -> Any:
    """The step of a build that verifies, where ONNX Runtime dies after so many calls; of None as it loads a file."""
    from enginehouse.engines import onnxruntime
    from enginehouse_build.judge.verify import verify

    class Dying(onnxruntime.OnnxRuntimeCpu):
        left = calls

        def __init__(self, options: Any) -> None:
            if calls is None:
                die(signal.SIGSEGV)
            super().__init__(options)

        def infer(self, inputs: Any) -> Any:
            if not self.left:
                die(signal.SIGSEGV)
            self.left -= 1
            return super().infer(inputs)

    onnxruntime.OnnxRuntimeCpu = Dying  # type: ignore[misc]
    return verify(*arguments)


def convert_where_files_die(*arguments: Any) -> Any:
    from enginehouse_build.convert import convert

    convert.shutil.copyfile = lambda *_: die(signal.SIGSEGV)  # type: ignore[assignment]
    return convert.convert(*arguments)


def measure_once(*arguments: Any) -> Any:
    """The step of a build that measures its engines, with one call at each point, and all in the process of the step.

    Engines are loaded and asked as ever; how long they took says nothing.
    """
    from enginehouse_build.judge import measured, profile

    profile.AGREEING_ROUNDS = profile.MOST_ROUNDS = 1
    profile.Stopwatch = Glance  # type: ignore[assignment, misc]
    return measured.measured_beside(*arguments)


def measure_three_rounds(*arguments: Any) -> Any:
    """The same step with its processes and windows, but no more rounds until figures settle."""
    from enginehouse_build.judge import measured, profile

    profile.MOST_ROUNDS = profile.AGREEING_ROUNDS
    return measured.measured_beside(*arguments)


class Glance:
    """What a `Stopwatch` does, in this process and by one call, which counts as the first round's warm-up too."""

    def __init__(self, kind: EngineKind, artifact: str, order: Path, _: float) -> None:
        self._what = kind, artifact
        self._order = order
        self._seen: dict[stopwatch.Cell, stopwatch.Window] = {}

    def __enter__(self) -> Glance:
        return self

    def __exit__(self, *_: object) -> None:
        """The engine ends with the process of the step."""

    def wait_until_loaded(self) -> None:
        try:
            self._bundle, self._samples, self._engine = stopwatch.loaded(*self._what, self._order)
        except EnginehouseError as error:
            raise BuildError(f"{type(error).__name__}: {error}") from None

    def window(self, cell: stopwatch.Cell) -> stopwatch.Window:
        if cell not in self._seen:
            began = time.perf_counter()
            try:
                self._engine.infer(stopwatch.request(self._bundle, self._samples, cell))
            except EnginehouseError as error:
                raise BuildError(f"{type(error).__name__}: {error}") from None
            self._seen[cell] = stopwatch.Window([time.perf_counter() - began])
        return self._seen[cell]
