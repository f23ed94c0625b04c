"""The end of a local server: not ready first, then no new requests, then the last answer, and only then its processes.

    signal ── not ready, still answers ── refuses new ones (503) ── no answer under way ── no new connections ── end
              NOTICE_S                    until the grace is over ────────────────────────┤

By the routers' own count, and through `handle.broadcast`: a changed `user_config` would take a router out of rotation,
and an application that is deleted answers 404.
"""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path
from typing import Any

from ray import serve

from enginehouse.cluster import haproxy
from enginehouse.contract.config import APP_NAME

#: How long requests are still answered after the server has said that it is not ready: whoever spreads them over
#: several servers asks once a second or so.
NOTICE_S = 1.0
#: Two signals within so many seconds are one: a wrapper passes on what the terminal has sent to both.
_SAME_S = 0.3
_ASK_EVERY_S, _ANSWER_S = 0.1, 2.0


class Signals:
    """SIGINT and SIGTERM from now on: the first one sets `asked`, the second one raises KeyboardInterrupt."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self._at = 0.0
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._receive)

    def _receive(self, *_: object) -> None:
        if not self.asked.is_set():
            self._at = time.monotonic()
            self.asked.set()
        elif time.monotonic() > self._at + _SAME_S:
            raise KeyboardInterrupt


class Drain:
    """Ends requests, but no process. Made while all is well, so that the routers are known when they are asked."""

    def __init__(self) -> None:
        self._handle = serve.get_app_handle(APP_NAME)
        # A handle learns of the routers with its first call.
        self._of_each("status")

    def run(self, folder: Path, grace_s: float) -> int:
        """Until every request is answered or refused, for at most `grace_s`; how many requests were not answered.

        `folder` is that of HAProxy.
        """
        give_up = time.monotonic() + grace_s
        self._under_way(refuse=False)
        time.sleep(min(NOTICE_S, grace_s))
        refusing = time.monotonic()
        # Repeated, since a router may be replaced meanwhile by one that knows nothing of this.
        while (
            under_way := self._under_way(refuse=True) or haproxy.answering(folder, time.monotonic() - refusing)
        ) and time.monotonic() < give_up:
            time.sleep(_ASK_EVERY_S)
        # From here on connections are refused.
        haproxy.end_softly(folder)
        return under_way

    def _under_way(self, refuse: bool) -> int:
        """Requests under way in all routers. One that is too busy to say counts as one, one that is gone as none."""
        counts = self._of_each("drain", refuse)
        return sum(count if isinstance(count, int) else isinstance(count, TimeoutError) for count in counts)

    def _of_each(self, method: str, *arguments: Any) -> list[Any]:
        """What each router answers, an exception where one does not."""
        try:
            answers: list[Any] = self._handle.broadcast(method, *arguments).results(
                timeout_s=_ANSWER_S, return_exceptions=True
            )
        except Exception as error:
            return [error]
        return answers
