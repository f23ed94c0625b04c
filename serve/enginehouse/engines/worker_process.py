"""Python processes that work for this one: each has a connection to it, and ends with it however it ends.

    with WorkerProcess("package.module", "argument") as worker:
        worker.send(request)
        answer = worker.receive()

There, `python -P -m package.module` ends in `serve(work)`, and `work(parent)` receives what is sent here and answers.
Messages are whatever can be pickled; an EnginehouseError is raised where it is received.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pickle
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn

from enginehouse.contract.errors import EnginehouseError

_PR_SET_PDEATHSIG = 1
#: How often to look whether the process is still there: one that it forked may hold its end of the connection open.
_LOOK_S = 0.5
#: A process that has hung up has so long to end.
_GRACE_S = 10.0


class WorkerDied(Exception):
    """The process ended before it answered; the text goes on from its name: "was ended by SIGSEGV"."""


class WorkerProcess:
    """A process that runs `module`, which has to call `serve` or `begin`; a context, at whose end it is killed.

    It finds the same packages as this one. What it prints is added to the file `log`, or appears where this process
    prints. With `group` it does not see Ctrl-C, and all that it has started is killed with it.
    """

    def __init__(self, module: str, *arguments: str, log: Path | None = None, group: bool = False) -> None:
        self._log = log
        self._group = group
        self._connection, theirs = Pipe()
        with theirs, contextlib.ExitStack() as stack:
            output = None if log is None else stack.enter_context(log.open("ab"))
            self.process = subprocess.Popen(
                # -P: nothing that lies in the current folder, beside a model say, is imported for being there.
                [sys.executable, "-P", "-m", module, str(os.getpid()), str(theirs.fileno()), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                # Its packages are wherever this process found them, installed or not.
                env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
                pass_fds=(theirs.fileno(),),
                start_new_session=group,
            )

    def __enter__(self) -> WorkerProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self, message: object) -> None:
        """Raises WorkerDied."""
        try:
            _send(self._connection, message)
        except OSError:
            raise self._died() from None

    def poll(self, seconds: float) -> bool:
        """Wait at most `seconds` until `receive` has something to return or to raise."""
        give_up = time.monotonic() + seconds
        while not self._connection.poll(min(_LOOK_S, max(0.0, give_up - time.monotonic()))):
            if self.process.poll() is not None:
                return True
            if time.monotonic() >= give_up:
                return False
        return True

    def receive(self) -> Any:
        """The next message. Raises WorkerDied, and the EnginehouseError that was sent or ended the work."""
        while not self.poll(_LOOK_S):
            pass
        try:
            if not self._connection.poll():
                raise EOFError
            message = _receive(self._connection)
        except (EOFError, OSError):
            raise self._died() from None
        if isinstance(message, EnginehouseError):
            raise message
        return message

    def kill(self) -> None:
        """End it at once; it is gone on return."""
        with contextlib.suppress(ProcessLookupError):
            if self._group:
                os.killpg(self.process.pid, signal.SIGKILL)
            else:
                self.process.kill()
        self.process.wait()

    def close(self) -> None:
        """`kill`, and no message can be had any more."""
        self.kill()
        self._connection.close()

    def _died(self) -> WorkerDied:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(_GRACE_S)
        self.kill()
        code = self.process.returncode
        if code < 0:
            hint = " (the system may have been out of memory)" if -code == signal.SIGKILL else ""
            return WorkerDied(f"was ended by {signal.Signals(-code).name}{hint}")
        if self._log is None:
            return WorkerDied(f"ended with code {code} and no result; what it said is above")
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return WorkerDied(f"ended with code {code} and no result: {lines[-1] if lines else 'it said nothing'}")


class Parent:
    """The process that started this one, and the `arguments` that it gave."""

    def __init__(self, connection: Connection, arguments: Sequence[str]) -> None:
        self.arguments = arguments
        self._connection = connection

    def send(self, message: object) -> None:
        """What was printed before this is in the log when the parent has the message."""
        sys.stdout.flush()
        sys.stderr.flush()
        _send(self._connection, message)

    def receive(self) -> Any:
        """The next message; this process ends when no more can come."""
        try:
            return _receive(self._connection)
        except (EOFError, OSError):
            os._exit(0)


def begin() -> Parent:
    """Have the kernel kill this process when its parent (on Linux: the thread that started it) ends."""
    parent, descriptor, *arguments = sys.argv[1:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != int(parent):
            # It ended before the kernel was asked.
            os._exit(1)
    # The parent hears of the end of this process only if nothing that it starts has the connection too.
    os.set_inheritable(int(descriptor), False)
    return Parent(Connection(int(descriptor)), arguments)


def serve(work: Callable[[Parent], None]) -> NoReturn:
    """`begin`, do the work and end; an EnginehouseError that it raises is raised in the parent."""
    parent = begin()
    code = 0
    try:
        work(parent)
    except EnginehouseError as error:
        parent.send(error)
    except Exception:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    # Engine libraries have crashed while their threads were taken down; the answers are out.
    os._exit(code)


def _send(connection: Connection, message: object) -> None:
    # Not with `Connection.send`: torch has its pickler pass tensors in shared memory, which ends with their process.
    connection.send_bytes(pickle.dumps(message))


def _receive(connection: Connection) -> Any:
    return pickle.loads(connection.recv_bytes())
