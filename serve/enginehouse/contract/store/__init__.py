"""Stores: where bundles live. A local folder, or any URL that fsspec knows (`s3://bucket/models`, ...)."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import tempfile
import uuid
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec

from enginehouse.contract.bundle import MANIFEST, Bundle
from enginehouse.contract.errors import (
    BuildError,
    BundleError,
    ConfigError,
    InvalidInput,
    ManifestInvalid,
    ModelNotFound,
    StoreUnavailable,
)
from enginehouse.contract.manifest import File, Manifest
from enginehouse.contract.store.atomic_folder import publish, stage
from enginehouse.contract.store.cache import cache_folder, fetch, private_cache
from enginehouse.contract.store.upload import upload

_WEB = {"http", "https"}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def check_name(what: str, name: str) -> str:
    """`name` itself if it is safe as a folder and URL part, else InvalidInput."""
    if not _NAME.fullmatch(name):
        raise InvalidInput(f"{what} {name!r} is not usable: letters, digits, '.', '_' and '-' only, at most 128")
    return name


def version_order(version: str) -> tuple[int, int, str]:
    """Sort key for versions: numbers by value, after all names."""
    return (1, int(version), "") if version.isdecimal() else (0, 0, version)


class Store:
    """Reads and publishes bundles. Every node makes its own from the same URL.

    What is opened from a remote store is copied into a node-local cache (`$ENGINEHOUSE_CACHE`, default
    `~/.cache/enginehouse`), each file checked against its sha256. A store that cannot be read now raises
    StoreUnavailable, which says nothing of the bundles in it; one that can never be, ConfigError.

    Credentials and endpoints are fsspec's and the backend's own settings and have to be there on every node that opens
    the store. For `s3://`: the AWS variables and files, with `AWS_ENDPOINT_URL` for MinIO, Ceph and the like; for
    every backend: `~/.config/fsspec/*.json` or `FSSPEC_<PROTOCOL>_<OPTION>`.
    """

    def __init__(self, url: str | os.PathLike[str]) -> None:
        self.url = str(url)
        self._fs: Any
        try:
            self._fs, self._root = fsspec.core.url_to_fs(self.url)
        except (ValueError, ImportError) as error:
            # An unknown scheme, or one whose package (s3fs, gcsfs, ...) is not installed.
            raise ConfigError(f"store {self.url!r} cannot be used: {error}") from None
        self._protocols = {self._fs.protocol} if isinstance(self._fs.protocol, str) else set(self._fs.protocol)
        self._local = bool(self._protocols & {"file", "local"})

    def absolute_url(self) -> str:
        """The store's URL as every process may use it, whatever its working directory."""
        return str(Path(self.url).resolve()) if self._local and "://" not in self.url else self.url

    def models(self) -> list[str]:
        """Names of all models in the store, sorted."""
        return sorted({PurePosixPath(path).parent.parent.name for path in self._manifests("*")})

    def versions(self, model: str) -> list[str]:
        """Versions of `model`, oldest first; empty when there is none."""
        found = (PurePosixPath(path).parent.name for path in self._manifests(check_name("model", model)))
        return sorted(found, key=version_order)

    def latest(self, model: str) -> str:
        """The newest version of `model`, or ModelNotFound."""
        versions = self.versions(model)
        if not versions:
            raise ModelNotFound(model, None, tuple(self.models()))
        return versions[-1]

    def manifest(self, model: str, version: str, digest: str = "") -> Manifest:
        """Read only the manifest. Raises ManifestInvalid, StoreUnavailable; BundleError if it has another `digest`."""
        text = self._read_manifest(model, version)
        self._check(model, version, text, digest)
        return Manifest.parse(text, self._path(model, version, MANIFEST))

    def digest(self, model: str, version: str) -> str:
        """What tells this bundle from any other one in its place. Raises ManifestInvalid, StoreUnavailable."""
        return _digest(self._read_manifest(model, version))

    def open(self, model: str, version: str, artifacts: Collection[str] | None = None, digest: str = "") -> Bundle:
        """The bundle in a local folder; of a remote store's, the named artifacts (None: all) are fetched first.

        Artifacts that are not named may be absent from that folder; opening the bundle again with other names adds
        them. A cached file that was damaged since is fetched again. Raises ManifestInvalid, ArtifactMissing (also for
        a name that the bundle does not have), DigestMismatch when the store itself holds another content than the
        manifest promises, BundleError when the manifest has not the `digest` that is given, InvalidInput,
        StoreUnavailable, and ConfigError where the cache cannot be written.
        """
        source = self._path(check_name("model", model), check_name("version", version))
        if self._local:
            bundle = Bundle(Path(source), self.manifest(model, version, digest))
            _files(bundle.manifest, artifacts)
            return bundle
        text = self._read_manifest(model, version)
        self._check(model, version, text, digest)
        manifest = Manifest.parse(text, self._path(model, version, MANIFEST))
        return Bundle.open(fetch(self._fs, source, text, _files(manifest, artifacts)))

    def publish(self, folder: Path, model: str, version: str) -> str:
        """Put a finished bundle folder into the store, all at once; its final place is returned.

        A local store takes the folder itself, a remote one a copy of it. Raises BuildError when that version is
        already there (published bundles are never changed), when it is just being published by another, and when the
        store fails; no readable version is left then.
        """
        target = self._path(check_name("model", model), check_name("version", version))
        if not self._local:
            upload(self._fs, folder, target)
            return target
        try:
            won = publish(folder, Path(target))
        except OSError as error:
            raise BuildError(str(error)) from None
        if not won:
            raise BuildError(f"{target} already exists and bundles are immutable; choose another --version")
        return target

    def staging(self) -> Path:
        """A new empty folder on the store's own file system where that is local, so that publishing is one rename.

        Folders that killed builds left there are removed. Raises ConfigError where nothing can be written.
        """
        parent = Path(self._root) if self._local else cache_folder()
        try:
            if not self._local:
                private_cache()
            return stage(parent / ".building")
        except OSError as error:
            raise ConfigError(f"{parent} cannot be written: {error.strerror}; choose another --store") from None

    def check_writable(self, model: str) -> None:
        """Raises ConfigError where a bundle of `model` could not be published, by writing what is at once removed."""
        target = Path(self._path(check_name("model", model)))
        if self._local:
            # What is not there yet is made in the nearest folder that is.
            folder = next(path for path in (target, *target.parents) if os.path.lexists(path))
            try:
                with tempfile.TemporaryFile(dir=folder):
                    pass
            except OSError as error:
                raise ConfigError(f"{folder} cannot be written: {error.strerror}; choose another --store") from None
            return
        # Listings leave out what is in a folder of this name.
        probe = self._path(".building", uuid.uuid4().hex)
        try:
            self._fs.pipe_file(probe, b"")
        except Exception as error:
            # fsspec backends raise their own classes.
            raise ConfigError(
                f"store {self.url!r} cannot be written: {type(error).__name__}: {error}; choose another --store"
            ) from None
        with contextlib.suppress(Exception):
            self._fs.rm_file(probe)

    def _path(self, *parts: str) -> str:
        return "/".join([self._root.rstrip("/"), *parts])

    def _manifests(self, model: str) -> list[str]:
        self._fs.invalidate_cache()
        try:
            if self._local:
                # fsspec's own listing follows no links to folders (2026.x), and takes brackets in a name for a pattern.
                found = [str(path) for path in _manifests_below(Path(self._root), model)]
            else:
                found = self._fs.glob("/".join([_escaped(self._root.rstrip("/")), model, "*", MANIFEST]))
        except Exception as error:
            raise self._outage(error) from None
        return [path for path in found if "/.building/" not in path]

    def _read_manifest(self, model: str, version: str) -> bytes:
        path = self._path(check_name("model", model), check_name("version", version), MANIFEST)
        try:
            return bytes(self._fs.cat_file(path))
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            if not self.is_there():
                raise self._outage(error) from None
            raise ManifestInvalid(path, f"{type(error).__name__}: {error}") from None
        except Exception as error:
            raise self._outage(error) from None

    def _check(self, model: str, version: str, text: bytes, digest: str) -> None:
        if digest and _digest(text) != digest:
            raise BundleError(
                f"{self._path(model, version)} was rewritten since {model}@{version} was added; "
                f"`enginehouse models add {model}@{version}` serves what is there now"
            )

    def is_there(self) -> bool:
        """Whether there is anything at the root: there is not where a disk is not mounted or a bucket is gone."""
        try:
            if self._local:
                return any(Path(self._root).iterdir())
            # Web servers need not answer for a folder.
            return bool(_WEB & self._protocols or self._fs.exists(self._root))
        except Exception:
            return False

    def _outage(self, error: Exception) -> StoreUnavailable:
        # fsspec backends raise their own classes for no credentials, no network, no such bucket.
        return StoreUnavailable(f"store {self.url!r} cannot be read: {type(error).__name__}: {error}")


def _digest(manifest: bytes) -> str:
    """It has the digests of all files."""
    return hashlib.sha256(manifest).hexdigest()[:16]


def _manifests_below(root: Path, model: str) -> Iterator[Path]:
    """Of a local store, for one model or for `*`; folders may be links."""
    models = _folders(root) if model == "*" else [root / model]
    for folder in models:
        for version in _folders(folder):
            if (version / MANIFEST).is_file():
                yield version / MANIFEST


def _folders(parent: Path) -> list[Path]:
    return sorted(path for path in parent.iterdir() if path.is_dir()) if parent.is_dir() else []


def _escaped(path: str) -> str:
    """`path` as a pattern that matches nothing else."""
    return re.sub(r"([*?[])", r"[\1]", path)


def _files(manifest: Manifest, artifacts: Collection[str] | None) -> list[File]:
    wanted = manifest.artifacts if artifacts is None else [manifest.artifact(name) for name in artifacts]
    # Whoever loads an engine may have to verify it first.
    check = [file for file in manifest.files if artifacts is None or file.path.startswith("check/")]
    return [*check, *(file for artifact in wanted for file in artifact.files)]
