"""One command at a time works on a job: `OUTPUT/_job/driver.json` says which, and is renewed while it does.

It is for people who start a job twice; results would be right all the same (see `ledger`), computed twice for nothing.
A command that was killed is known at once on its own machine, and elsewhere once it was not renewed for a while.
"""

from __future__ import annotations

import contextlib
import json
import socket
import time
import uuid
from collections.abc import Iterator
from typing import Any

import psutil

from enginehouse.contract.errors import ConfigError
from enginehouse.faces.scoring.storage import Folder

NAME = "_job/driver.json"
#: Seconds between renewals, and after which one that was not renewed is dead.
_RENEWED_S, _EXPIRES_S = 10.0, 45.0


class Lease:
    """This process's right to work on the job in `folder`."""

    def __init__(self, folder: Folder) -> None:
        self._folder, self._token, self._at = folder, uuid.uuid4().hex, 0.0

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Take it for the context. Raises ConfigError, saying who has it."""
        self._take()
        try:
            yield
        finally:
            if (self._current() or {}).get("token") == self._token:
                self._folder.remove(NAME)

    def renew(self) -> None:
        """Say that this process is alive, if that was not said lately. Raises ConfigError when another has taken it."""
        if time.monotonic() - self._at < _RENEWED_S:
            return
        current = self._current()
        if current is not None and current["token"] != self._token:
            raise ConfigError(f"{self._folder.url}: {_who(current)} works on this job now; this one stops")
        self._write()

    def _take(self) -> None:
        self._at = time.monotonic()
        if self._folder.create(NAME, self._text()):
            return
        current = self._current()
        if current is not None and _is_alive(current):
            raise ConfigError(
                f"{self._folder.url}: {_who(current)} works on this job; `enginehouse score status` says how far it is "
                f"(if it is dead, remove {self._folder.path(NAME)})"
            )
        self._write()

    def _write(self) -> None:
        self._at = time.monotonic()
        self._folder.put(NAME, self._text())

    def _text(self) -> bytes:
        me = psutil.Process()
        return json.dumps(
            {
                "token": self._token,
                "host": socket.gethostname(),
                "pid": me.pid,
                "since": me.create_time(),
                "at": time.time(),
            }
        ).encode()

    def _current(self) -> dict[str, Any] | None:
        text = self._folder.read(NAME)
        try:
            return None if text is None else dict(json.loads(text))
        except ValueError:
            return None


def _is_alive(driver: dict[str, Any]) -> bool:
    if driver["host"] != socket.gethostname():
        return bool(time.time() - driver["at"] < _EXPIRES_S)
    try:
        return bool(psutil.Process(driver["pid"]).create_time() == driver["since"])
    except psutil.NoSuchProcess:
        return False


def _who(driver: dict[str, Any]) -> str:
    return f"another command ({driver['host']}, process {driver['pid']})"
