"""The node's cache of remote bundles: a file comes in whole and checked, or not at all.

    CACHE/<sha256 of the manifest>/manifest.json, <artifact>/...    what was asked for so far, each file checked
    CACHE/.parts/<sha256 of the file>                               a download under way, or as far as it came

CACHE is `$ENGINEHOUSE_CACHE`, by default `~/.cache/enginehouse`; only its user may enter it.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

from enginehouse.contract.bundle import MANIFEST, sha256_of
from enginehouse.contract.errors import (
    ArtifactMissing,
    ConfigError,
    DigestMismatch,
    EnginehouseError,
    ManifestInvalid,
    StoreUnavailable,
)
from enginehouse.contract.manifest import File
from enginehouse.contract.shown import redacted
from enginehouse.contract.store.atomic_folder import locked
from enginehouse.contract.store.private import private_folder

#: One range request, and how many of them are under way at once: a single connection to S3 does not fill a network.
_BLOCK = 8 << 20
_AT_ONCE = 4
#: A download is given up after this many attempts in a row that bring nothing, or after one that took so long: some
#: backends (S3) try for most of a minute themselves. The pause between attempts doubles.
_ATTEMPTS = 5
_PATIENCE_S = 10.0
_PAUSE_S = 0.25

_SHA256 = re.compile(r"[0-9a-f]{64}")

logger = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Where this node keeps copies of remote bundles. Raises ConfigError for a user without a home."""
    root = os.environ.get("ENGINEHOUSE_CACHE")
    if root:
        return Path(root)
    try:
        return Path.home() / ".cache" / "enginehouse"
    except RuntimeError:
        raise ConfigError("there is no home to keep the cache in; set ENGINEHOUSE_CACHE to a folder") from None


def private_cache(name: str = "") -> Path:
    """The cache, or a folder in it, made where it is missing; nobody else may enter. Raises ConfigError, OSError."""
    try:
        root = private_folder(cache_folder())
        return private_folder(root / name) if name else root
    except ConfigError as error:
        raise ConfigError(f"{error}; ENGINEHOUSE_CACHE names the folder of the cache") from None


def fetch(fs: Any, source: str, manifest: bytes, files: Sequence[File]) -> Path:
    """Bring `files` of the remote bundle at `source` into the cache and return the bundle's folder there.

    Only what is missing or has changed is fetched. An interrupted download is resumed, by this process or a later one,
    where the backend reads ranges. Processes that want the same file wait for the one that fetches it.

    Raises ManifestInvalid for a path outside the bundle, ArtifactMissing for a file that the store lacks,
    DigestMismatch for one whose content is not the manifest's, StoreUnavailable when the store breaks off, and
    ConfigError when the cache cannot be used.
    """
    root = cache_folder()
    folder = root / hashlib.sha256(manifest).hexdigest()
    for file in files:
        where = fs.unstrip_protocol(f"{source}/{MANIFEST}")
        if not (folder / file.path).resolve().is_relative_to(folder.resolve()):
            raise ManifestInvalid(where, f"{file.path!r} is outside its bundle")
        if not _SHA256.fullmatch(file.sha256):
            raise ManifestInvalid(where, f"{file.sha256!r} of {file.path!r} is not a sha256")
    # A listing that the backend remembers may be older than the files.
    fs.invalidate_cache()
    try:
        private_cache()
        parts = root / ".parts"
        parts.mkdir(parents=True, exist_ok=True)
        for file in files:
            _bring(fs, f"{source}/{file.path}", file, folder / file.path, parts / file.sha256)
        folder.mkdir(exist_ok=True)
        _write_manifest(folder / MANIFEST, manifest, parts)
    except OSError as error:
        raise ConfigError(f"cache {root} cannot be used: {error}; ENGINEHOUSE_CACHE may name another folder") from error
    return folder


def _bring(fs: Any, path: str, file: File, target: Path, part: Path) -> None:
    if _is(file, target):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with locked(part) as stream:
        # Whoever held the lock before may have brought it.
        if _is(file, target):
            part.unlink()
        else:
            _download(fs, path, file, stream)
            part.replace(target)


def _is(file: File, path: Path) -> bool:
    return path.is_file() and path.stat().st_size == file.bytes and sha256_of(path) == file.sha256


def _download(fs: Any, path: str, file: File, part: BinaryIO) -> None:
    """Complete `part` and check it; one that is wrong may be what another process left, so it is fetched anew once."""
    for _ in range(2):
        _complete(fs, path, file, part)
        actual = sha256_of(Path(part.name))
        if actual == file.sha256:
            return
        part.truncate(0)
    raise DigestMismatch(fs.unstrip_protocol(path), file.sha256, actual)


def _complete(fs: Any, path: str, file: File, part: BinaryIO) -> None:
    """Append what `part` lacks, however often the connection breaks, as long as something comes."""
    url = fs.unstrip_protocol(path)
    fruitless = 0
    last_progress = time.monotonic()
    while True:
        before = part.seek(0, os.SEEK_END)
        try:
            _append(fs, path, file, part)
            return
        except EnginehouseError:
            raise
        except Exception as error:
            # Each backend has its own classes for a broken connection; fsspec's for the web says "not found" then.
            came = part.seek(0, os.SEEK_END)
            if came > before:
                fruitless, last_progress = 0, time.monotonic()
            fruitless += 1
            if fruitless == _ATTEMPTS or time.monotonic() - last_progress > _PATIENCE_S:
                if isinstance(error, FileNotFoundError):
                    raise ArtifactMissing(url, "the manifest lists this file, but it is not in the store") from None
                # Not from the backend's own error: a traceback would quote the URL with its credentials.
                raise StoreUnavailable(f"{url} cannot be fetched: {type(error).__name__}: {error}") from None
            logger.warning(
                "%s: %d of %d bytes are here; going on after %s",
                *(redacted(url), came, file.bytes, redacted(repr(error))),
            )
            time.sleep(_PAUSE_S * 2 ** (fruitless - 1))


def _append(fs: Any, path: str, file: File, part: BinaryIO) -> None:
    size = fs.size(path)
    if size is not None and size != file.bytes:
        actual = f"unknown ({size} bytes, not {file.bytes})"
        raise DigestMismatch(fs.unstrip_protocol(path), file.sha256, actual)
    start = part.seek(0, os.SEEK_END)
    if size is None or (size > _BLOCK and not _reads_ranges(fs, path, size)):
        fs.get_file(path, part.name)
        return
    for group in range(start, size, _BLOCK * _AT_ONCE):
        starts = list(range(group, min(group + _BLOCK * _AT_ONCE, size), _BLOCK))
        ends = [min(start + _BLOCK, size) for start in starts]
        blocks = fs.cat_ranges([path] * len(starts), starts, ends, on_error="return")
        for start, end, block in zip(starts, ends, blocks, strict=True):
            if isinstance(block, Exception):
                raise block
            part.write(block)
            part.flush()
            if len(block) != end - start:
                raise EOFError(f"asked for {end - start} bytes from {start}, got {len(block)}")


def _reads_ranges(fs: Any, path: str, size: int) -> bool:
    """Whether a part of the file can be had without all of it: some web servers send everything, whatever is asked."""
    try:
        with fs.open(path, "rb") as stream:
            stream.seek(size - 1)
            return len(stream.read(1)) == 1
    except ValueError:
        return False


def _write_manifest(path: Path, text: bytes, parts: Path) -> None:
    if path.is_file() and path.read_bytes() == text:
        return
    with locked(parts / path.parent.name) as stream:
        stream.truncate(0)
        stream.write(text)
        stream.flush()
        Path(stream.name).replace(path)
