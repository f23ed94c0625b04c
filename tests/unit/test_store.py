"""Stores on a local folder and behind an fsspec URL: publishing is all at once and final."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest
from tests.unit.test_bundle import SIGNATURE, artifact

from enginehouse.bundle import Bundle, Manifest, SignatureRecord, sha256_of
from enginehouse.errors import (
    BuildError,
    DigestMismatch,
    EnginehouseError,
    InvalidInput,
    ManifestInvalid,
    ModelNotFound,
)
from enginehouse.store import Store


@pytest.fixture(params=["folder", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setenv("ENGINEHOUSE_CACHE", str(tmp_path / "cache"))
    if request.param == "folder":
        yield Store(tmp_path / "store")
        return
    url = f"memory://{tmp_path.name}"
    yield Store(url)
    fsspec.filesystem("memory").rm(tmp_path.name, recursive=True)


def publish(store: Store, model: str, version: str, content: bytes = b"weights") -> str:
    folder = store.staging()
    (folder / "onnx").mkdir()
    ready = artifact(folder / "onnx", content)
    file = ready.files[0].model_copy(update={"path": "onnx/model.onnx"})
    manifest = Manifest(
        name=model,
        version=version,
        created="2026-01-01T00:00:00Z",
        source="tests",
        signature=SignatureRecord.of(SIGNATURE),
        max_batch=4,
        artifacts=(ready.model_copy(update={"files": (file,)}),),
    )
    (folder / "manifest.json").write_text(manifest.model_dump_json())
    return store.publish(folder, model, version)


def content(bundle: Bundle) -> bytes:
    return bundle.verified_files(bundle.manifest.artifacts[0])[0].read_bytes()


def test_an_empty_store_has_no_models(store: Store) -> None:
    publish(store, "seed", "1")
    assert store.versions("digits") == []
    with pytest.raises(ModelNotFound, match="'digits'.*seed"):
        store.latest("digits")


def test_what_is_published_is_what_is_opened(store: Store) -> None:
    publish(store, "digits", "1", b"one")
    publish(store, "digits", "2", b"two")
    assert store.models() == ["digits"]
    assert content(store.open("digits", "1")) == b"one"
    assert content(store.open("digits", "2")) == b"two"
    assert store.manifest("digits", "2").version == "2"


def test_versions_are_ordered_by_number(store: Store) -> None:
    for version in ("10", "9", "beta"):
        publish(store, "digits", version)
    assert store.versions("digits") == ["beta", "9", "10"]
    assert store.latest("digits") == "10"


def test_a_published_version_is_never_replaced(store: Store) -> None:
    publish(store, "digits", "1", b"first")
    with pytest.raises(BuildError, match="immutable"):
        publish(store, "digits", "1", b"second")
    assert content(store.open("digits", "1")) == b"first"


def test_bundles_under_construction_are_not_seen(store: Store) -> None:
    publish(store, "digits", "1")
    (store.staging() / "manifest.json").write_text("{}")
    assert store.models() == ["digits"]


@pytest.mark.parametrize("name", ["", "..", "a/b", ".hidden", "a b", "x" * 129])
def test_names_that_are_unsafe_in_paths_are_refused(store: Store, name: str) -> None:
    publish(store, "seed", "1")
    with pytest.raises(InvalidInput, match="not usable"):
        store.open(name, "1")
    with pytest.raises(InvalidInput, match="not usable"):
        publish(store, "digits", name)


def test_a_version_that_is_not_there_says_which_manifest(store: Store) -> None:
    publish(store, "seed", "1")
    with pytest.raises(ManifestInvalid, match=r"digits/7/manifest\.json"):
        store.open("digits", "7")


def test_a_changed_file_is_not_loaded(store: Store) -> None:
    publish(store, "digits", "1")
    bundle = store.open("digits", "1")
    file = bundle.path / "onnx" / "model.onnx"
    file.write_bytes(b"weightz")
    with pytest.raises(DigestMismatch) as refused:
        content(bundle)
    assert refused.value.args[0] == str(file)
    assert refused.value.args[2] == sha256_of(file)


@pytest.fixture
def web_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """A store behind a web server; fsspec's memory files share one position, so readers of those disturb each other."""
    monkeypatch.setenv("ENGINEHOUSE_CACHE", str(tmp_path / "cache"))
    publish(Store(tmp_path / "store"), "digits", "1", b"shared")
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(tmp_path / "store"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield Store(f"http://127.0.0.1:{server.server_port}")
        server.shutdown()
        thread.join()


def test_many_readers_fetch_a_version_together(web_store: Store) -> None:
    assert web_store.versions("digits") == ["1"]
    start = threading.Barrier(6)

    def read(_: int) -> bytes:
        start.wait(5)
        return content(web_store.open("digits", "1"))

    with ThreadPoolExecutor(6) as readers:
        assert set(readers.map(read, range(6))) == {b"shared"}


def test_of_many_publishers_one_wins(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    start = threading.Barrier(6)

    def attempt(turn: int) -> bytes | None:
        start.wait(5)
        try:
            publish(store, "digits", "1", b"%d" % turn)
        except EnginehouseError:
            return None
        return b"%d" % turn

    with ThreadPoolExecutor(6) as publishers:
        winners = [winner for winner in publishers.map(attempt, range(6)) if winner is not None]
    assert len(winners) == 1
    assert content(store.open("digits", "1")) == winners[0]


def test_remote_bundles_are_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENGINEHOUSE_CACHE", str(tmp_path / "cache"))
    store = Store(f"memory://{tmp_path.name}-once")
    publish(store, "digits", "1")
    first = store.open("digits", "1")
    assert first.path.parent == tmp_path / "cache"
    assert content(first) == b"weights"
    stamp = (first.path / "onnx" / "model.onnx").stat().st_mtime_ns
    again = Store(store.url).open("digits", "1")
    assert again.path == first.path
    assert (again.path / "onnx" / "model.onnx").stat().st_mtime_ns == stamp
