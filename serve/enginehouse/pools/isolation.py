"""Isolation: engines of a process compute side by side, or one of them alone, so that a crash has one suspect.

1. A call enters `beside` the others, or `alone`: then no other call is inside, of whichever model.
2. Who cannot enter yet waits in one queue. The first of it enters as soon as those inside allow, so that neither a
   stream of usual calls keeps a suspected request out nor a stream of suspected requests the usual calls.
3. Every wait ends at its own deadline.
4. What may take minutes, or never end, is *lasting*: an engine that is being loaded, and a call that has computed for
   STILL_S. Nobody waits until it is over. Who wants to be alone is refused then, or enters with no other company than
   that, as it wishes: then a crash has more suspects than one.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

#: Seconds after which a call inside is lasting. While someone waits to be alone nobody else begins to compute.
STILL_S = 2.0


class Isolation:
    """The entrance to the engines of one process. Used from the threads in which they compute."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        # When each of those inside has entered; infinitely long ago for a load.
        self._inside: dict[object, float] = {}
        self._is_alone = False
        self._waiting: deque[object] = deque()

    @contextmanager
    def beside(self, until: float) -> Iterator[None]:
        """Compute beside others in the context. Raises TimeoutError at `until`, a time of `time.monotonic`."""
        with self._entered(until, alone=False, company=False):
            yield

    @contextmanager
    def loading(self, until: float) -> Iterator[None]:
        """As `beside`, to load an engine."""
        with self._entered(until, alone=False, company=False) as place:
            with self._changed:
                self._inside[place] = -math.inf
                self._changed.notify_all()
            yield

    @contextmanager
    def alone(self, until: float, company: bool = False) -> Iterator[bool]:
        """Compute alone in the context, after those inside have left; whether it is alone.

        With `company` it may also be beside what is lasting; else TimeoutError is raised then, and in any case at
        `until`.
        """
        with self._entered(until, alone=True, company=company):
            with self._changed:
                is_alone = len(self._inside) == 1
            yield is_alone

    @contextmanager
    def _entered(self, until: float, alone: bool, company: bool) -> Iterator[object]:
        place = object()
        with self._changed:
            if self._waiting or not self._has_room(alone, company):
                self._wait(place, until, alone, company)
            self._inside[place] = time.monotonic()
            self._is_alone = alone
        try:
            yield place
        finally:
            with self._changed:
                del self._inside[place]
                # Beside a lasting one that leaves, it still is.
                self._is_alone = self._is_alone and not alone
                if self._waiting:
                    self._changed.notify_all()

    def _wait(self, place: object, until: float, alone: bool, company: bool) -> None:
        self._waiting.append(place)
        try:
            while not (self._waiting[0] is place and self._has_room(alone, company)):
                now = time.monotonic()
                # Nobody gives notice of becoming lasting. Who is alone inside is not waited out: it is as suspected.
                lasting = [entered + STILL_S for entered in self._inside.values() if alone and not self._is_alone]
                if now >= until or (not company and any(at <= now for at in lasting)):
                    raise TimeoutError
                look_again = min([until, *(at for at in lasting if at > now)])
                self._changed.wait(min(look_again - now, threading.TIMEOUT_MAX))
        finally:
            # The next one may be able to enter as well, once the lock is released.
            self._waiting.remove(place)
            self._changed.notify_all()

    def _has_room(self, alone: bool, company: bool) -> bool:
        if not alone or not self._inside:
            return not self._is_alone
        now = time.monotonic()
        return company and not self._is_alone and all(entered + STILL_S <= now for entered in self._inside.values())


#: A crash ends the process and all engines in it: so it has one entrance for all.
of_this_process = Isolation()
