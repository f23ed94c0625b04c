"""Files of a job, on a local disk or behind any URL of fsspec: read as they are, published whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import os
import uuid
from pathlib import Path
from typing import Any

import fsspec

from enginehouse.contract.errors import ConfigError, StoreUnavailable
from enginehouse.contract.store.exclusive import create

#: Below a folder of results: what is being written there, and lost when its process is killed.
PARTS = "_job/parts"


def file_system(url: str) -> tuple[Any, str]:
    """fsspec's file system for `url` and the path in it. Raises ConfigError for a scheme that is not known here."""
    try:
        fs, path = fsspec.core.url_to_fs(url)
    except (ValueError, ImportError) as error:
        raise ConfigError(f"{url!r} cannot be used: {error}") from None
    return fs, str(path)


def is_local(fs: Any) -> bool:
    """Whether `fs` is this machine's own, on which paths are files."""
    protocols = {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)
    return bool(protocols & {"file", "local"})


class Folder:
    """A folder of results, by the same URL in every process; names in it are relative, with `/`.

    Every method raises StoreUnavailable for what the disk or the store refuses.
    """

    def __init__(self, url: str) -> None:
        fs, path = file_system(url)
        self.is_local = is_local(fs)
        self.url = str(Path(path).resolve()) if self.is_local else url.rstrip("/")
        self._fs, self._root = fs, (self.url if self.is_local else path.rstrip("/"))

    def __reduce__(self) -> tuple[type[Folder], tuple[str]]:
        return Folder, (self.url,)

    def path(self, name: str) -> str:
        """Where `name` is, for people and for other programs."""
        return f"{self.url}/{name}"

    def read(self, name: str) -> bytes | None:
        """The content of a file, None where there is none."""
        with self._refusals(name):
            try:
                return bytes(self._fs.cat_file(self._at(name)))
            except (FileNotFoundError, NotADirectoryError):
                return None
        raise AssertionError("unreachable")

    def read_all(self, below: str) -> dict[str, bytes]:
        """The files right below the folder `below`, by their names there."""
        names = sorted(self.sizes(below))
        if self.is_local:
            return {name: (Path(self._root) / below / name).read_bytes() for name in names}
        with self._refusals(below):
            # Many at once: one after the other takes a round trip each.
            found = self._fs.cat([self._at(f"{below}/{name}") for name in names]) if names else {}
            return dict(zip(names, (bytes(found[path]) for path in sorted(found)), strict=True))
        raise AssertionError("unreachable")

    def sizes(self, below: str = "") -> dict[str, int]:
        """Names and bytes of the files right below the folder `below`; nothing where there is no such folder."""
        at = self._at(below) if below else self._root
        with self._refusals(below):
            self._fs.invalidate_cache()
            try:
                entries = self._fs.ls(at, detail=True)
            except (FileNotFoundError, NotADirectoryError):
                return {}
            found = {str(entry["name"]).rsplit("/", 1)[-1]: entry for entry in entries if entry["type"] == "file"}
            return {name: int(entry["size"]) for name, entry in found.items() if name}
        raise AssertionError("unreachable")

    def create(self, name: str, data: bytes) -> bool:
        """Publish a file in one step; False, and nothing is changed, if there is one already."""
        with self._refusals(name):
            if self.is_local:
                part = self._part(data)
                target = Path(self._at(name))
                target.parent.mkdir(parents=True, exist_ok=True)
                try:
                    os.link(part, target)
                except FileExistsError:
                    return False
                finally:
                    part.unlink(missing_ok=True)
                return True
            try:
                create(self._fs, self._at(name), data)
            except FileExistsError:
                return False
            return True
        raise AssertionError("unreachable")

    def put(self, name: str, data: bytes) -> None:
        """Publish a file in one step, in the place of one that may be there."""
        with self._refusals(name):
            if self.is_local:
                target = Path(self._at(name))
                target.parent.mkdir(parents=True, exist_ok=True)
                self._part(data).replace(target)
            else:
                self._fs.pipe_file(self._at(name), data)

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        with self._refusals(name), contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(self._at(name))

    def clear_parts(self) -> None:
        """Remove what killed processes left half written."""
        if self.is_local:
            for left in Path(self._at(PARTS)).glob("*"):
                left.unlink(missing_ok=True)

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _part(self, data: bytes) -> Path:
        """`data` in a file of its own, on the file system where it is to be published."""
        folder = Path(self._at(PARTS))
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / uuid.uuid4().hex
        part.write_bytes(data)
        return part

    @contextlib.contextmanager
    def _refusals(self, name: str) -> Any:
        try:
            yield
        except (StoreUnavailable, ConfigError):
            raise
        except Exception as error:
            # fsspec's backends raise their own classes.
            said = getattr(error, "strerror", None) or str(error)
            raise StoreUnavailable(f"{self.path(name)} cannot be used: {type(error).__name__}: {said}") from None


def digest(data: bytes) -> str:
    """What tells these bytes from any others."""
    return hashlib.sha256(data).hexdigest()
