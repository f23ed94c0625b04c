"""Stores on a local folder and behind an fsspec URL: publishing is all at once and final."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import random
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.arrow import ArrowFSWrapper
from pyarrow.fs import LocalFileSystem
from tests.unit.test_bundle import SIGNATURE, artifact

from enginehouse.contract.bundle import Bundle, sha256_of
from enginehouse.contract.errors import (
    BuildError,
    BundleError,
    ConfigError,
    DigestMismatch,
    EnginehouseError,
    InvalidInput,
    ManifestInvalid,
    ModelNotFound,
    StoreUnavailable,
)
from enginehouse.contract.manifest import Manifest, SignatureRecord
from enginehouse.contract.store import Store
from enginehouse.contract.store.upload import upload


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


def test_what_was_rewritten_has_another_digest_and_is_not_opened_as_what_was_meant(store: Store) -> None:
    publish(store, "digits", "1", b"one")
    meant = store.digest("digits", "1")
    assert store.manifest("digits", "1", meant).version == "1"
    assert content(store.open("digits", "1", digest=meant)) == b"one"
    store._fs.rm(store._path("digits", "1"), recursive=True)
    publish(store, "digits", "1", b"two")
    assert store.digest("digits", "1") != meant
    for read in (store.manifest, store.open):
        with pytest.raises(BundleError, match="rewritten since digits@1 was added; `enginehouse models add digits@1`"):
            read("digits", "1", digest=meant)
    assert content(store.open("digits", "1")) == b"two"


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


def test_a_listing_follows_links_to_the_store_its_models_and_versions(tmp_path: Path) -> None:
    publish(Store(tmp_path / "real"), "digits", "1")
    elsewhere = Store(tmp_path / "elsewhere")
    publish(elsewhere, "tones", "7")
    publish(elsewhere, "digits", "2")
    (tmp_path / "real" / "tones").symlink_to(tmp_path / "elsewhere" / "tones")
    (tmp_path / "real" / "digits" / "2").symlink_to(tmp_path / "elsewhere" / "digits" / "2")
    (tmp_path / "real" / "gone").symlink_to(tmp_path / "nowhere")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    for store in (Store(tmp_path / "link"), Store(f"file://{tmp_path / 'link'}")):
        assert store.models() == ["digits", "tones"]
        assert store.versions("digits") == ["1", "2"]
        assert content(store.open("tones", store.latest("tones"))) == b"weights"


@pytest.mark.parametrize("name", ["a[1]", "what?", "*", "[!x]", "{a,b}"])
@pytest.mark.parametrize("scheme", ["", "memory://"])
def test_a_store_may_have_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, scheme: str) -> None:
    monkeypatch.setenv("ENGINEHOUSE_CACHE", str(tmp_path / "cache"))
    root = f"{scheme}{tmp_path}/{name}"
    publish(Store(root), "digits", "1")
    publish(Store(f"{scheme}{tmp_path}/a1"), "other", "1")
    assert Store(root).models() == ["digits"]
    assert Store(root).latest("digits") == "1"
    assert Store(root).versions("other") == []


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
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
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


def test_a_web_server_without_ranges_sends_large_files_whole(tmp_path: Path, web_store: Store) -> None:
    large = random.Random(1).randbytes(20 << 20)
    publish(Store(tmp_path / "store"), "large", "1", large)
    part = tmp_path / "cache" / ".parts" / hashlib.sha256(large).hexdigest()
    part.parent.mkdir(parents=True)
    part.write_bytes(b"what an interrupted download left")
    assert content(web_store.open("large", "1")) == large


def test_a_cache_that_cannot_be_written_says_how_to_choose_another(
    tmp_path: Path, web_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "occupied").write_text("a file where a folder should be")
    monkeypatch.setenv("ENGINEHOUSE_CACHE", str(tmp_path / "occupied"))
    with pytest.raises(ConfigError, match=r"occupied.*ENGINEHOUSE_CACHE"):
        web_store.open("digits", "1")


def test_a_store_that_is_down_is_not_taken_for_a_missing_version() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(StoreUnavailable, match=f"{url}.* cannot be read"):
            Store(url).open("digits", "1")


@pytest.mark.parametrize(
    ("change", "told"), [({"path": "../../stolen"}, "outside its bundle"), ({"sha256": "../../stolen"}, "not a sha256")]
)
def test_a_manifest_cannot_place_files_outside_its_bundle(
    tmp_path: Path, web_store: Store, change: dict[str, str], told: str
) -> None:
    path = tmp_path / "store" / "digits" / "1" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["artifacts"][0]["files"][0].update(change)
    path.write_text(json.dumps(manifest))
    with pytest.raises(ManifestInvalid, match=told):
        web_store.open("digits", "1")
    assert list(tmp_path.rglob("stolen")) == []


def test_a_store_without_exclusive_writes_still_refuses_a_published_version(tmp_path: Path) -> None:
    files = ArrowFSWrapper(LocalFileSystem())
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "manifest.json").write_text("{}")
    target = tmp_path / "store" / "digits" / "1"
    target.mkdir(parents=True)
    upload(files, folder, str(target))
    assert [file.name for file in target.iterdir()] == ["manifest.json"]
    with pytest.raises(BuildError, match="immutable"):
        upload(files, folder, str(target))


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


def test_staging_folders_of_killed_processes_are_removed_and_only_those(store: Store) -> None:
    publish(store, "seed", "1")
    program = (
        "import sys, time; from enginehouse.contract.store import Store; "
        "folder = Store(sys.argv[1]).staging(); (folder / 'half').write_text('done'); print(folder, flush=True); "
        "time.sleep(60)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    process = subprocess.Popen(
        [sys.executable, "-c", program, store.url], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout is not None
    theirs = Path(process.stdout.readline().strip())
    mine = [store.staging(), Store(store.url).staging()]
    assert (theirs / "half").read_text() == "done"
    process.kill()
    process.wait()
    process.stdout.close()
    mine.append(store.staging())
    assert not theirs.exists()
    assert all(folder.is_dir() for folder in mine)
