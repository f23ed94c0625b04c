"""The process of one part: `python -m benchmarks.gpu.work`, which `benchmarks.gpu.runner` starts."""

from __future__ import annotations

import importlib
import json
import signal
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.gpu.lab import Lab, NotRun
from enginehouse.engines import worker_process


def work(order: Mapping[str, Any]) -> None:
    """Run a part and write what it finds to a file of JSON lines, each at once, and how it ended."""
    lab = Lab(Path(order["store"]), order["dry"], order["seconds"], order["threads"])
    with Path(order["found"]).open("a", buffering=1) as file:

        def tell(**line: object) -> None:
            file.write(json.dumps(line) + "\n")

        try:
            for row in importlib.import_module(order["module"]).run(lab):
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
    work(json.loads(worker_process.begin(sys.argv)[0]))
