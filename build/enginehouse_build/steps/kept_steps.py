"""Finished steps of earlier builds, found by the content of everything that went into them.

    $ENGINEHOUSE_CACHE/steps/<key>/files/...    what the step made
                                  /result.json  what it returned, and the digests of its files
                                  /log          what it said

A step appears all at once or not at all. Entries that were not used for a month are removed.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import orjson

from enginehouse.contract.bundle import sha256_of
from enginehouse.contract.errors import ConfigError
from enginehouse.contract.store.atomic_folder import publish, staged
from enginehouse.contract.store.cache import cache_folder, private_cache
from enginehouse.contract.store.private import tightened
from enginehouse_build.steps import records

KEPT_S = 30 * 24 * 3600.0

#: Distributions whose version can change what a step makes.
DISTRIBUTIONS = (
    "enginehouse", "numpy", "torch", "onnx", "onnxscript", "onnxruntime", "onnxruntime-gpu",
    "nncf", "openvino", "tensorrt", "tensorrt-rtx",
)  # fmt: skip


def digest_of(*parts: Any) -> str:
    """Hex sha256 of JSON-like values (paths as text), the same in every process."""
    return hashlib.sha256(orjson.dumps(parts, option=orjson.OPT_SORT_KEYS, default=str)).hexdigest()


@cache
def versions() -> Mapping[str, str]:
    """Installed versions of `DISTRIBUTIONS`."""
    found = {}
    for name in DISTRIBUTIONS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


@cache
def code_digest() -> str:
    """Digest of the code that makes and checks artifacts: between releases it changes without its version."""
    import enginehouse
    import enginehouse_build

    roots = [Path(module.__path__[0]) for module in (enginehouse, enginehouse_build)]
    folders = [roots[0] / "contract", roots[0] / "engines", roots[1]]
    files = [(str(file.relative_to(folder)), file) for folder in folders for file in sorted(folder.rglob("*.py"))]
    return digest_of([(name, sha256_of(file)) for name, file in files])


@dataclass(frozen=True, slots=True)
class Finished:
    """A step that is kept: its folder of files, its log, and what it returned."""

    files: Path
    log: Path
    result: Any


class KeptSteps:
    """The finished steps of one user on one machine."""

    def __init__(self) -> None:
        self._root = cache_folder() / "steps"
        try:
            private_cache("steps")
            os.utime(self._root)
        except OSError as error:
            raise ConfigError(
                f"the cache {self._root} cannot be written: {error.strerror}; set ENGINEHOUSE_CACHE to another folder"
            ) from None

    def get(self, key: str) -> Finished | None:
        """The step with this key; None if it never finished or its files were changed since."""
        entry = self._root / key
        try:
            tightened(entry)
            result, digests = records.loads((entry / "result.json").read_bytes())
        except (OSError, ValueError, ConfigError):
            return None
        if digests != _digests(entry / "files"):
            return None
        os.utime(entry)
        return Finished(entry / "files", entry / "log", result)

    @contextlib.contextmanager
    def staging(self) -> Iterator[Path]:
        """An entry to fill, with an empty folder `files` and an empty `log`; gone afterwards unless `put` took it."""
        with staged(self._root) as entry:
            (entry / "files").mkdir()
            (entry / "log").touch()
            yield entry

    def put(self, key: str, entry: Path, result: Any) -> Finished:
        """Keep the filled `entry`."""
        (entry / "result.json").write_bytes(records.dumps((result, _digests(entry / "files"))))
        target = self._root / key
        while not publish(entry, target):
            # What is there was made over again, or another build has finished the same step at this moment.
            shutil.rmtree(target, ignore_errors=True)
        return Finished(target / "files", target / "log", result)

    def shared(self, name: str) -> Path:
        """A file that steps may keep between builds; it need not exist."""
        return self._root.parent / name

    def prune(self) -> None:
        """Remove what was not used for a month."""
        now = time.time()
        for entry in self._root.iterdir():
            with contextlib.suppress(OSError):
                if now - entry.stat().st_mtime > KEPT_S:
                    shutil.rmtree(entry, ignore_errors=True)


def link(sources: Sequence[Path], target: Path) -> None:
    """Put files into the folder `target` without a second copy where the file system allows."""
    target.mkdir(parents=True, exist_ok=True)
    for source in sources:
        try:
            os.link(source, target / source.name)
        except OSError:
            shutil.copyfile(source, target / source.name)


def _digests(folder: Path) -> dict[str, str]:
    return {file.name: sha256_of(file) for file in sorted(folder.iterdir())}
