"""Finished steps are found by their key, whole or not at all."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from enginehouse_build.steps.kept_steps import KEPT_S, KeptSteps, digest_of, link


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> KeptSteps:
    monkeypatch.setenv("ENGINEHOUSE_CACHE", str(tmp_path / "cache"))
    return KeptSteps()


def fill(kept: KeptSteps, key: str, content: str, result: object = None) -> Path:
    with kept.staging() as entry:
        (entry / "files" / "model.onnx").write_text(content)
        (entry / "log").write_text("said")
        return kept.put(key, entry, result).files


def test_a_finished_step_is_found_with_files_log_and_result(kept: KeptSteps) -> None:
    assert kept.get("key") is None
    fill(kept, "key", "weights", {"rows": 3})
    found = kept.get("key")
    assert found is not None
    assert (found.files / "model.onnx").read_text() == "weights"
    assert (found.log.read_text(), found.result) == ("said", {"rows": 3})


def test_a_file_that_was_changed_added_or_removed_is_noticed(kept: KeptSteps) -> None:
    for change in (
        lambda files: (files / "model.onnx").write_text("other"),
        lambda files: (files / "more").touch(),
        lambda files: (files / "model.onnx").unlink(),
    ):
        change(fill(kept, "key", "weights"))
        assert kept.get("key") is None


def test_a_step_that_failed_leaves_nothing(kept: KeptSteps, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), kept.staging() as entry:
        (entry / "files" / "model.onnx").write_text("half")
        raise ZeroDivisionError
    assert list((tmp_path / "cache" / "steps").iterdir()) == []


def test_the_last_of_two_with_one_key_stays(kept: KeptSteps) -> None:
    fill(kept, "key", "first")
    fill(kept, "key", "second")
    found = kept.get("key")
    assert found is not None
    assert (found.files / "model.onnx").read_text() == "second"


def test_entries_not_used_for_a_month_go(kept: KeptSteps) -> None:
    for key in ("old", "used", "new"):
        fill(kept, key, key)
    long_ago = time.time() - KEPT_S - 60
    for key in ("old", "used"):
        found = kept.get(key)
        assert found is not None
        os.utime(found.files.parent, (long_ago, long_ago))
    assert kept.get("used") is not None
    kept.prune()
    assert [kept.get(key) is not None for key in ("old", "used", "new")] == [False, True, True]


def test_keys_tell_values_apart_and_are_the_same_in_every_order(tmp_path: Path) -> None:
    assert digest_of({"a": 1, "b": tmp_path}) == digest_of({"b": str(tmp_path), "a": 1})
    assert digest_of([1, "2"]) != digest_of(["1", 2])
    assert digest_of("ab", "c") != digest_of("a", "bc")


def test_linked_files_have_the_content(kept: KeptSteps, tmp_path: Path) -> None:
    link(sorted(fill(kept, "key", "weights").iterdir()), tmp_path / "bundle")
    assert (tmp_path / "bundle" / "model.onnx").read_text() == "weights"
