"""Folders that are there whole or not at all, whoever is killed while they are made.

with staged(parent) as folder:              fill it; only this process has it
    won = publish(folder, parent / "name")  one rename
with locked(path): ...                      one process at a time makes what the others then find

Locks (flock) are those of processes: they end with the one that holds them, however that ends.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

_SUFFIX = ".part"
#: The locks of this process on its staging folders.
_held: dict[Path, int] = {}


def stage(parent: Path) -> Path:
    """A new empty folder in `parent`, this process's own for as long as it lives; raises OSError.

    What processes left there that are gone is removed. A folder is locked itself, so it may be moved, and on a file
    system without such locks nothing is ever removed.
    """
    parent.mkdir(parents=True, exist_ok=True)
    for folder in [folder for folder in list(_held) if not folder.exists()]:
        descriptor = _held.pop(folder, None)
        if descriptor is not None:
            os.close(descriptor)
    for left in parent.glob(f"*{_SUFFIX}"):
        # Not another user's, nor where nothing can be locked.
        with suppress(OSError):
            _remove_orphan(left)
    while True:
        folder = Path(tempfile.mkdtemp(suffix=_SUFFIX, dir=parent))
        try:
            descriptor = _lock(folder)
        except OSError:
            # No such locks on this file system: nobody else gets one either.
            return folder
        # Another process may have taken it for an orphan before it was locked.
        if descriptor is not None:
            _held[folder] = descriptor
            return folder


@contextmanager
def staged(parent: Path) -> Iterator[Path]:
    """`stage`, and the folder is removed at the end unless it was published."""
    folder = stage(parent)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def publish(folder: Path, target: Path) -> bool:
    """Move `folder` to `target`; False, and nothing is moved, when another has put something there. Raises OSError."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        folder.rename(target)
    except OSError:
        if target.exists():
            return False
        raise
    return True


@contextmanager
def locked(path: Path) -> Iterator[BinaryIO]:
    """The file `path`, open for appending by one process at a time; others wait. It may be moved away meanwhile."""
    while True:
        with path.open("ab") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            # Whoever held the lock before may have moved the file away; then this is no longer the one at `path`.
            if _is_at(path, stream):
                yield stream
                return


def _is_at(path: Path, stream: BinaryIO) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(stream.fileno()))
    except FileNotFoundError:
        return False


def _lock(folder: Path) -> int | None:
    """A descriptor that holds the lock of `folder`, None when another has it or has taken the folder away."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return None
    mine = False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        mine = folder.is_dir()
    except BlockingIOError:
        pass
    finally:
        if not mine:
            os.close(descriptor)
    return descriptor if mine else None


def _remove_orphan(folder: Path) -> None:
    descriptor = _lock(folder)
    if descriptor is not None:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)
