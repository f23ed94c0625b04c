"""The process of one part: `python -m benchmarks.gpu.work`, which `benchmarks.gpu.runner` starts."""

from __future__ import annotations

import importlib
import json
import signal
import sys
import traceback

from benchmarks.gpu.lab import Lab, NotRun
from enginehouse.engines import worker_process


def work(parent: worker_process.Parent) -> None:
    """Run a part and send what it finds as lines of JSON, each at once, and how it ended."""
    module: str
    lab: Lab
    module, lab = parent.receive()

    def tell(**line: object) -> None:
        parent.send(json.dumps(line))

    try:
        for row in importlib.import_module(module).run(lab):
            tell(row=row)
    except NotRun as reason:
        tell(outcome="not run", reason=str(reason))
    except Exception as error:
        traceback.print_exc()
        tell(outcome="failed", reason=f"{type(error).__name__}: {error}"[:400])
    else:
        tell(outcome="done", reason="")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    # Not `serve`: what a part has started is ended while this process is taken down, and the runner waits for that.
    begun = worker_process.begin()
    work(begun)
