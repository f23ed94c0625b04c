"""Publishing: all or nothing, versions that never change."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from enginehouse.contract.bundle import MANIFEST, Bundle
from enginehouse.contract.errors import BuildError
from enginehouse.contract.store import Store


def test_version_defaults_to_the_next_number(linear: Path, build_onnx: Callable[..., Bundle], tmp_path: Path) -> None:
    assert build_onnx(linear).manifest.version == "1"
    assert build_onnx(linear, version="9").path == tmp_path / "store" / "tiny" / "9"
    assert build_onnx(linear, version="beta").manifest.version == "beta"
    assert build_onnx(linear, max_batch=8).manifest.version == "10"
    assert Store(tmp_path / "store").versions("tiny") == ["beta", "1", "9", "10"]


def test_published_version_is_never_changed(linear: Path, build_onnx: Callable[..., Bundle]) -> None:
    bundle = build_onnx(linear, version="3")
    before = (bundle.path / MANIFEST).read_bytes()
    with pytest.raises(BuildError, match="tiny version 3 is already in .*choose another --version"):
        build_onnx(linear, version="3", max_batch=8)
    # The very same build has nothing to say against it.
    assert build_onnx(linear, version="3").path == bundle.path
    assert (bundle.path / MANIFEST).read_bytes() == before


def test_finished_build_leaves_only_its_version(
    linear: Path, build_onnx: Callable[..., Bundle], tmp_path: Path
) -> None:
    bundle = build_onnx(linear)
    assert list((tmp_path / "store" / ".building").iterdir()) == []
    # Another user, the one who serves, must be able to read what this one built.
    assert bundle.path.stat().st_mode & 0o055 == 0o777 & ~_umask() & 0o055


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
