"""Finds something and is killed."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

from benchmarks.gpu.lab import Lab, Row


def run(lab: Lab) -> Iterator[Row]:
    yield {"threads": lab.threads}
    os.kill(os.getpid(), signal.SIGKILL)
