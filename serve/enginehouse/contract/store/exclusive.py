"""Files behind any URL of fsspec that are written once, by whoever comes first."""

from __future__ import annotations

from typing import Any


def create(fs: Any, path: str, data: bytes) -> None:
    """Write a file that must not be there yet, else FileExistsError; where the backend can, in one step.

    S3 and Google can (If-None-Match). A backend that has no such condition is asked first.
    """
    try:
        fs.pipe_file(path, data, mode="create")
    except (NotImplementedError, ValueError):
        # How fsspec's backends say that they cannot.
        if fs.exists(path):
            raise FileExistsError(path) from None
        fs.pipe_file(path, data)
