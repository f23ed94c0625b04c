"""Isolation: engines of a process compute side by side, or one of them alone, so that a crash has one suspect.

1. A call enters `beside` the others, or `alone`: then no other call is inside, of whichever model.
2. Who cannot enter yet waits in one queue. The first of it enters as soon as those inside allow, so that neither a
   stream of usual calls keeps a suspected request out nor a stream of suspected requests the usual calls.
3. Every wait ends at its own deadline.
4. An engine that is being loaded computes too, but may take minutes: nobody waits to be alone until it is loaded.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager


class Isolation:
    """The entrance to the engines of one process. Used from the threads in which they compute."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        # Those inside; of these, loads.
        self._inside = self._loads = 0
        self._is_alone = False
        self._waiting: deque[object] = deque()

    @contextmanager
    def beside(self, until: float) -> Iterator[None]:
        """Compute beside others in the context. Raises TimeoutError at `until`, a time of `time.monotonic`."""
        self._enter(until, alone=False)
        try:
            yield
        finally:
            self._leave()

    @contextmanager
    def loading(self, until: float) -> Iterator[None]:
        """As `beside`, to load an engine."""
        with self.beside(until):
            with self._changed:
                self._loads += 1
                self._changed.notify_all()
            try:
                yield
            finally:
                with self._changed:
                    self._loads -= 1

    @contextmanager
    def alone(self, until: float) -> Iterator[None]:
        """Compute alone in the context, after those inside have left.

        Raises TimeoutError at `until`, and at once while an engine is being loaded.
        """
        self._enter(until, alone=True)
        try:
            yield
        finally:
            self._leave()

    def _enter(self, until: float, alone: bool) -> None:
        with self._changed:
            if self._waiting or not self._has_room(alone):
                self._wait(until, alone)
            self._inside += 1
            self._is_alone = alone

    def _wait(self, until: float, alone: bool) -> None:
        place = object()
        self._waiting.append(place)
        try:
            wait_s = min(max(0.0, until - time.monotonic()), threading.TIMEOUT_MAX)
            self._changed.wait_for(lambda: self._is_next(place, alone) or (alone and self._loads), wait_s)
            if not self._is_next(place, alone):
                raise TimeoutError
        finally:
            # The next one may be able to enter as well, once the lock is released.
            self._waiting.remove(place)
            self._changed.notify_all()

    def _is_next(self, place: object, alone: bool) -> bool:
        return self._waiting[0] is place and self._has_room(alone)

    def _has_room(self, alone: bool) -> bool:
        return not self._inside if alone else not self._is_alone

    def _leave(self) -> None:
        with self._changed:
            self._inside -= 1
            self._is_alone = False
            if self._waiting:
                self._changed.notify_all()


#: A crash ends the process and all engines in it: so it has one entrance for all.
of_this_process = Isolation()
