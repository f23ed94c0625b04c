"""Stores: where bundles live. A local folder, or any URL that fsspec knows (`s3://bucket/models`, ...)."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec

from enginehouse.bundle import MANIFEST, Bundle, Manifest
from enginehouse.errors import BuildError, ConfigError, InvalidInput, ManifestInvalid, ModelNotFound

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

    Bundles of a remote store are copied once into a node-local cache, keyed by the digest of their manifest
    (`$ENGINEHOUSE_CACHE`, default `~/.cache/enginehouse`). A store that cannot be reached raises ConfigError.
    """

    def __init__(self, url: str | os.PathLike[str]) -> None:
        self.url = str(url)
        self._fs: Any
        try:
            self._fs, self._root = fsspec.core.url_to_fs(self.url)
        except (ValueError, ImportError) as error:
            # An unknown scheme, or one whose package (s3fs, gcsfs, ...) is not installed.
            raise ConfigError(f"store {self.url!r} cannot be used: {error}") from None
        protocols = {self._fs.protocol} if isinstance(self._fs.protocol, str) else set(self._fs.protocol)
        self._local = bool(protocols & {"file", "local"})

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

    def manifest(self, model: str, version: str) -> Manifest:
        """Read only the manifest. Raises ManifestInvalid."""
        return Manifest.parse(self._read_manifest(model, version), self._path(model, version, MANIFEST))

    def open(self, model: str, version: str) -> Bundle:
        """The bundle in a local folder, fetched first if the store is remote. Raises ManifestInvalid, InvalidInput."""
        if self._local:
            return Bundle.open(Path(self._path(check_name("model", model), check_name("version", version))))
        text = self._read_manifest(model, version)
        folder = _cache() / hashlib.sha256(text).hexdigest()
        if not folder.is_dir():
            self._fetch(text, model, version, folder)
        return Bundle.open(folder)

    def publish(self, folder: Path, model: str, version: str) -> str:
        """Move a finished bundle folder into the store, all at once; its final place is returned.

        Raises BuildError when that version is already there: published bundles are never changed.
        """
        target = self._path(check_name("model", model), check_name("version", version))
        taken = f"{target} already exists and bundles are immutable; choose another --version"
        if self._local:
            Path(target).parent.mkdir(parents=True, exist_ok=True)
            try:
                folder.rename(target)
            except OSError as error:
                raise BuildError(taken if Path(target).exists() else str(error)) from None
            return target
        if self._fs.exists(f"{target}/{MANIFEST}"):
            raise BuildError(taken)
        for file in sorted(folder.rglob("*")):
            if file.is_file() and file.name != MANIFEST:
                self._fs.put_file(str(file), f"{target}/{file.relative_to(folder).as_posix()}")
        # A version exists for readers from the moment its manifest does.
        self._fs.put_file(str(folder / MANIFEST), f"{target}/{MANIFEST}")
        return target

    def staging(self) -> Path:
        """A new empty folder on the store's own file system where that is local, so that publishing is one rename."""
        parent = Path(self._root) / ".building" if self._local else _cache() / ".building"
        parent.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(dir=parent))

    def _path(self, *parts: str) -> str:
        return "/".join([self._root.rstrip("/"), *parts])

    def _manifests(self, model: str) -> list[str]:
        self._fs.invalidate_cache()
        try:
            found = self._fs.glob(self._path(model, "*", MANIFEST))
        except Exception as error:
            # fsspec backends raise their own classes for no credentials, no network, no such bucket.
            raise ConfigError(f"store {self.url!r} cannot be read: {type(error).__name__}: {error}") from None
        return [path for path in found if "/.building/" not in path]

    def _read_manifest(self, model: str, version: str) -> bytes:
        path = self._path(check_name("model", model), check_name("version", version), MANIFEST)
        try:
            return bytes(self._fs.cat_file(path))
        except Exception as error:
            # fsspec backends raise their own classes for "not there" and "not allowed".
            raise ManifestInvalid(path, f"{type(error).__name__}: {error}") from None

    def _fetch(self, text: bytes, model: str, version: str, folder: Path) -> None:
        """Copy what the manifest in `text` lists into `folder`, all at once."""
        manifest = Manifest.parse(text, self._path(model, version, MANIFEST))
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent))
        try:
            (temporary / MANIFEST).write_bytes(text)
            for file in (file for artifact in manifest.artifacts for file in artifact.files):
                target = temporary / file.path
                if not target.resolve().is_relative_to(temporary.resolve()):
                    raise ManifestInvalid(self._path(model, version, MANIFEST), f"{file.path!r} is outside its bundle")
                target.parent.mkdir(parents=True, exist_ok=True)
                self._fs.get_file(self._path(model, version, file.path), str(target))
            temporary.rename(folder)
        except OSError:
            # Another process of this node may have finished the same fetch first.
            if not folder.is_dir():
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _cache() -> Path:
    root = os.environ.get("ENGINEHOUSE_CACHE")
    return Path(root) if root else Path.home() / ".cache" / "enginehouse"
