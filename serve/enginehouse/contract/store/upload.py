"""Publishing into a remote store: a claim, the files, and last the manifest, which makes the version readable.

The claim is one object, `<version>/.publishing`. It is created exclusively where the backend can (S3 by If-None-Match,
GCS), so that of two publishers one is told at once. Elsewhere the later claim wins and the earlier publisher gives up
when it next looks, which is before each file and before the manifest.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from enginehouse.contract.bundle import MANIFEST
from enginehouse.contract.errors import BuildError
from enginehouse.contract.store.exclusive import create

_CLAIM = ".publishing"
#: A claim that was not renewed for so long is a dead publisher's. It is renewed before each file.
_CLAIM_EXPIRES_S = 3600.0


class _Claim(BaseModel):
    token: str
    by: str
    at: float

    @classmethod
    def new(cls) -> _Claim:
        return cls(token=uuid.uuid4().hex, by=f"{socket.gethostname()} (process {os.getpid()})", at=time.time())


def upload(fs: Any, folder: Path, target: str) -> None:
    """Copy the bundle in `folder` to `target`; on any failure no readable version is left.

    Raises BuildError when the version is there, when another publisher is at it, and when the store fails.
    """
    url = fs.unstrip_protocol(target)
    try:
        _Upload(fs, folder, target, url).run()
    except BuildError:
        raise
    except Exception as error:
        # fsspec backends raise their own classes.
        raise BuildError(f"{url} cannot be published: {type(error).__name__}: {error}") from None


class _Upload:
    def __init__(self, fs: Any, folder: Path, target: str, url: str) -> None:
        self._fs = fs
        self._folder = folder
        self._target = target
        self._url = url
        self._claim = _Claim.new()
        self._sent: list[str] = []

    def run(self) -> None:
        self._refuse_if_published()
        self._take_claim()
        try:
            # Once more: another publisher may have finished between the first look and the claim.
            self._refuse_if_published()
            for file in sorted(self._folder.rglob("*")):
                if file.is_file() and file != self._folder / MANIFEST:
                    self._renew_claim()
                    path = f"{self._target}/{file.relative_to(self._folder).as_posix()}"
                    self._sent.append(path)
                    self._fs.put_file(str(file), path)
            self._renew_claim()
            self._put_manifest()
        except BaseException:
            with contextlib.suppress(Exception):
                self._clear_up()
            raise
        with contextlib.suppress(Exception):
            self._fs.rm_file(f"{self._target}/{_CLAIM}")

    def _refuse_if_published(self) -> None:
        self._fs.invalidate_cache()
        if self._fs.exists(f"{self._target}/{MANIFEST}"):
            raise BuildError(f"{self._url} already exists and bundles are immutable; choose another --version")

    def _take_claim(self) -> None:
        path = f"{self._target}/{_CLAIM}"
        text = self._claim.model_dump_json().encode()
        try:
            create(self._fs, path, text)
        except FileExistsError:
            other = self._current_claim()
            if other is not None and time.time() - other.at < _CLAIM_EXPIRES_S:
                since = datetime.fromtimestamp(other.at, UTC).isoformat(timespec="seconds")
                raise BuildError(
                    f"{self._url} is being published by {other.by}, last seen {since}; wait for it or choose another "
                    f"--version (if it is dead, remove {self._fs.unstrip_protocol(path)})"
                ) from None
            self._fs.pipe_file(path, text)

    def _current_claim(self) -> _Claim | None:
        try:
            return _Claim.model_validate_json(self._fs.cat_file(f"{self._target}/{_CLAIM}"))
        except (FileNotFoundError, ValidationError):
            return None

    def _is_mine(self) -> bool:
        current = self._current_claim()
        return current is not None and current.token == self._claim.token

    def _renew_claim(self) -> None:
        if not self._is_mine():
            raise BuildError(f"{self._url} was taken over by another publisher; choose another --version")
        self._claim.at = time.time()
        self._fs.pipe_file(f"{self._target}/{_CLAIM}", self._claim.model_dump_json().encode())

    def _put_manifest(self) -> None:
        path = f"{self._target}/{MANIFEST}"
        text = (self._folder / MANIFEST).read_bytes()
        try:
            create(self._fs, path, text)
        except Exception:
            # The answer may have been lost rather than the write; repeated, an exclusive write then fails on itself.
            if self._fs.cat_file(path) != text:
                raise

    def _clear_up(self) -> None:
        """Remove what was sent, unless it may be another publisher's by now or a reader may see it."""
        if not self._is_mine():
            return
        self._fs.invalidate_cache()
        if not self._fs.exists(f"{self._target}/{MANIFEST}"):
            for path in self._sent:
                with contextlib.suppress(Exception):
                    self._fs.rm_file(path)
        self._fs.rm_file(f"{self._target}/{_CLAIM}")
