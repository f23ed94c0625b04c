"""The on-disk contract between the build stage and serving: a bundle is one folder with one `manifest.json`.

    STORE/<model>/<version>/manifest.json       what is here, how it was checked, how fast it is
    STORE/<model>/<version>/report.html         the same for people
    STORE/<model>/<version>/<artifact>/...      the files of one format in one precision
    STORE/<model>/<version>/check/...           real requests with the reference's answers, for engines made elsewhere
    STORE/<model>/<version>/logs/...            what each step of the build said

A bundle is immutable once published. Facts about a model live in its manifest only.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from enginehouse.contract.errors import ArtifactMissing, DigestMismatch, ManifestInvalid, StoreUnavailable
from enginehouse.contract.manifest import Artifact, File, Manifest
from enginehouse.contract.numerics import is_servable

MANIFEST = "manifest.json"
#: What a file system says of a file that is not there; whatever else it says is its own trouble.
_NOT_THERE = (FileNotFoundError, NotADirectoryError, IsADirectoryError)


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle in a local folder."""

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: Path) -> Bundle:
        """Read the manifest in `path`. Artifacts are checked when they are loaded.

        Raises ManifestInvalid, and StoreUnavailable where it is there and cannot be read.
        """
        file = path / MANIFEST
        try:
            text = file.read_bytes()
        except _NOT_THERE as error:
            raise ManifestInvalid(str(file), error.strerror or str(error)) from None
        except OSError as error:
            raise StoreUnavailable(f"{file} cannot be read: {error.strerror or error}") from None
        return cls(path, Manifest.parse(text, str(file)))

    def verified_files(self, artifact: Artifact) -> list[Path]:
        """Local paths of the artifact's files after checking every digest.

        Raises ArtifactMissing for an artifact that is never served or whose file is gone, DigestMismatch, and
        StoreUnavailable for a file that cannot be read.
        """
        if not is_servable(artifact):
            raise ArtifactMissing(str(self.path), f"artifact {artifact.name!r} is {artifact.status}: {artifact.reason}")
        return [self.verified(file) for file in artifact.files]

    def verified(self, file: File) -> Path:
        """Local path of a file after checking its digest; raises what `verified_files` raises."""
        path = self.path / file.path
        if not path.resolve().is_relative_to(self.path.resolve()):
            raise ArtifactMissing(str(path), "the manifest points outside its bundle")
        try:
            actual = sha256_of(path)
        except _NOT_THERE as error:
            raise ArtifactMissing(str(path), error.strerror or str(error)) from None
        except OSError as error:
            raise StoreUnavailable(f"{path} cannot be read: {error.strerror or error}") from None
        if actual != file.sha256:
            raise DigestMismatch(str(path), file.sha256, actual)
        return path


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
