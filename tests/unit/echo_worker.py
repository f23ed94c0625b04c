"""A worker of the tests: does with itself whatever it is told, and answers with what it was told."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

from enginehouse.contract.errors import ConversionFailed
from enginehouse.engines.worker_process import Parent, serve


def work(parent: Parent) -> None:
    while True:
        told = parent.receive()
        if told == "refuse":
            raise ConversionFailed("no rule for Det")
        if told == "stumble":
            raise KeyError(told)
        if told == "leave":
            print("so long", file=sys.stderr)
            sys.exit(3)
        if told == "die":
            os.kill(os.getpid(), signal.SIGSEGV)
        if told == "leave a fork":
            # It has this process's end of the connection.
            if os.fork() == 0:
                time.sleep(60)
            os._exit(3)
        if told == "start":
            told = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]).pid
        if told == "arguments":
            told = parent.arguments
        print("told", told)
        parent.send(told)


if __name__ == "__main__":
    serve(work)
