"""Staging folders: where bundles are put together, and who clears up after a build that was killed."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from pathlib import Path

#: The locks of this process on its staging folders. They end with the process, however that ends.
_held: dict[Path, int] = {}


def make_staging(parent: Path) -> Path:
    """A new empty folder in `parent`, this process's own for as long as it lives.

    Folders in `parent` whose process is gone are removed. A folder is locked itself (flock), so it may be moved, and
    on a file system without such locks nothing is ever removed.
    """
    parent.mkdir(parents=True, exist_ok=True)
    for folder in [folder for folder in list(_held) if not folder.exists()]:
        descriptor = _held.pop(folder, None)
        if descriptor is not None:
            os.close(descriptor)
    for entry in parent.iterdir():
        if entry.is_dir():
            _remove_orphan(entry)
    while True:
        folder = Path(tempfile.mkdtemp(dir=parent))
        # Another process may take it for an orphan before it is locked.
        if _hold(folder):
            return folder


def _hold(folder: Path) -> bool:
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return False
    except OSError:
        # No such locks on this file system: nobody else gets one either.
        os.close(descriptor)
        return True
    if not folder.is_dir():
        os.close(descriptor)
        return False
    _held[folder] = descriptor
    return True


def _remove_orphan(folder: Path) -> None:
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        # Already gone, or another user's.
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    except OSError:
        # Its process is alive.
        pass
    finally:
        os.close(descriptor)
