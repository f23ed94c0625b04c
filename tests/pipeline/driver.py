"""A build in a process of its own that can be watched, and killed at any stage.

python -m tests.pipeline.driver RECIPE.toml     one line for each event: stage, outcome and detail as JSON
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType

import psutil

ROOT = Path(__file__).parents[2]


class Driver:
    """A running build; `until` reads its events."""

    def __init__(self, recipe: Path) -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.pipeline.driver", str(recipe)],
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.events: list[tuple[str, str]] = []

    def __enter__(self) -> Driver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.communicate()

    def until(self, stage: str, outcome: str) -> None:
        """Read events until this one; fails when the build ends before."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.events.append(tuple(json.loads(line)[:2]))
            if self.events[-1] == (stage, outcome):
                return
        raise AssertionError(f"the build ended after {self.events}")

    def step_process(self) -> psutil.Process:
        """The process of the step that is running now."""
        while True:
            assert self.process.poll() is None
            for child in psutil.Process(self.process.pid).children():
                if "enginehouse_build.steps.isolate" in child.cmdline():
                    return child

    def end(self) -> list[tuple[str, str]]:
        """Let the build finish; all its events."""
        assert self.process.stdout is not None
        self.events.extend(tuple(json.loads(line)[:2]) for line in self.process.stdout)
        assert self.process.wait(timeout=120) == 0
        return self.events

    def kill(self, by: signal.Signals) -> int:
        """Send a signal to the build and wait for its end; its exit code."""
        self.process.send_signal(by)
        return self.process.wait(timeout=60)


def _main() -> None:
    from enginehouse_build import pipeline
    from enginehouse_build.inputs.recipe import Recipe

    from . import steps

    pipeline.measured_beside = steps.measure_once

    def tell(stage: str, outcome: str, detail: str = "") -> None:
        print(json.dumps([stage, outcome, detail]), flush=True)

    pipeline.build(Recipe.from_file(Path(sys.argv[1])), tell)


if __name__ == "__main__":
    _main()
