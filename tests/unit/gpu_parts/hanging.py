"""Finds something, starts a process, and never ends, whoever asks it to."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator

from benchmarks.gpu.lab import Lab, Row


def run(lab: Lab) -> Iterator[Row]:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    below = subprocess.Popen(["sleep", "600"])
    yield {"below": below.pid}
    time.sleep(600)
