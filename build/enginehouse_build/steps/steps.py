"""The steps of one build: each kept from earlier or run in its own process, with its log, its cost and how it ended."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias, TypeVar

from enginehouse.contract.errors import EnginehouseError, EngineUnavailable, StepDied
from enginehouse.contract.manifest import Step
from enginehouse_build.steps.isolate import Bounds, run
from enginehouse_build.steps.kept_steps import KeptSteps, code_digest, digest_of, versions

_T = TypeVar("_T")
Outcome: TypeAlias = Literal["started", "done", "cached", "failed", "unavailable"]


class Progress(Protocol):
    """Told about each stage twice: when it starts, and how it ended."""

    def __call__(self, stage: str, outcome: Outcome, detail: str = "") -> None: ...


class Steps:
    """Runs steps within `bounds` and keeps what the manifest tells of them; logs go to the folder `logs`.

    `fresh` uses nothing of earlier builds.
    """

    def __init__(self, logs: Path, bounds: Bounds, progress: Progress, *, fresh: bool) -> None:
        self.kept = KeptSteps()
        self.records: list[Step] = []
        self._logs = logs
        self._bounds = bounds
        self._progress = progress
        self._fresh = fresh

    def run(
        self,
        name: str,
        key: Any,
        function: Callable[..., _T],
        *arguments: Any,
        still_good: Callable[[_T], bool] = lambda _: True,
        detail: Callable[[_T], str] = lambda _: "",
    ) -> tuple[Path, _T]:
        """Files and result of `function(folder, *arguments)`, which `key` stands for.

        `still_good` looks at a result that was kept, `detail` says what to tell of one. Raises as `isolate.run` does.
        """
        self._progress(name, "started")
        key = digest_of(function.__qualname__, key, versions(), code_digest())
        log = self._logs / f"{name.replace(' ', '-')}.log"
        logged = f"{self._logs.name}/{log.name}"
        found = None if self._fresh else self.kept.get(key)
        if found is not None and still_good(found.result):
            shutil.copyfile(found.log, log)
            self.ended(Step(name=name, outcome="cached", detail=detail(found.result), log=logged))
            return found.files, found.result
        began = time.monotonic()
        with self.kept.staging() as entry:
            try:
                ran = run(function, entry / "files", *arguments, log=entry / "log", bounds=self._bounds)
            except EnginehouseError as error:
                kept = self.kept.shared("failed.log")
                shutil.copyfile(entry / "log", kept)
                error.add_note(f"what the step {name!r} said: {kept}")
                self.ended(
                    Step(
                        name=name,
                        outcome="unavailable" if isinstance(error, EngineUnavailable) else "failed",
                        detail=str(error),
                        seconds=time.monotonic() - began,
                        log=logged,
                        died=isinstance(error, StepDied),
                    )
                )
                raise
            finally:
                shutil.copyfile(entry / "log", log)
            done = self.kept.put(key, entry, ran.value)
        told = detail(ran.value)
        self.ended(Step(name=name, outcome="done", detail=told, seconds=ran.seconds, peak_mib=ran.peak_mib, log=logged))
        return done.files, ran.value

    def ended(self, step: Step) -> None:
        """Keep the record of a step and tell how it ended."""
        self.records.append(step)
        self._progress(step.name, step.outcome, step.detail)
