"""A store behind the S3 protocol: a real server, real broken connections, real killed processes."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from s3fs import S3FileSystem
from tests.pipeline.s3 import Server, Wire, connect, new_store
from tests.unit.test_bundle import SIGNATURE

from enginehouse.contract.bundle import MANIFEST, Bundle, sha256_of
from enginehouse.contract.errors import (
    ArtifactMissing,
    BuildError,
    ConfigError,
    DigestMismatch,
    ManifestInvalid,
    StoreUnavailable,
)
from enginehouse.contract.manifest import Artifact, File, Manifest, SignatureRecord
from enginehouse.contract.store import Store

MB = 1 << 20
#: Enough for two rounds of range requests, so that a download can be interrupted between them.
BIG = random.Random(7).randbytes(40 * MB)
SMALL = random.Random(8).randbytes(MB)


@pytest.fixture(scope="module")
def shared_server() -> Iterator[Server]:
    server = Server()
    yield server
    server.kill()


@pytest.fixture
def wire(shared_server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Wire]:
    yield from connect(shared_server, monkeypatch, tmp_path)


@pytest.fixture
def store(wire: Wire, tmp_path: Path) -> Store:
    return new_store(tmp_path)


def bundle_folder(store: Store, version: str = "1", **contents: bytes) -> Path:
    """A bundle with one artifact per keyword."""
    folder = store.staging()
    artifacts = []
    for name, content in contents.items():
        (folder / name).mkdir()
        path = folder / name / "model.onnx"
        path.write_bytes(content)
        file = File(path=f"{name}/model.onnx", sha256=sha256_of(path), bytes=len(content))
        artifacts.append(Artifact(name=name, format="onnx", precision="fp32", status="ready", files=(file,)))
    manifest = Manifest(
        name="net",
        version=version,
        created="2026-01-01T00:00:00Z",
        source="tests",
        signature=SignatureRecord.of(SIGNATURE),
        max_batch=4,
        artifacts=tuple(artifacts),
    )
    (folder / MANIFEST).write_text(manifest.model_dump_json())
    return folder


def content(bundle: Bundle, artifact: str) -> bytes:
    return bundle.verified_files(bundle.manifest.artifact(artifact))[0].read_bytes()


def is_big(bundle: Bundle) -> bool:
    return content(bundle, "big") == BIG


def opener(store: Store) -> subprocess.Popen[bytes]:
    program = "import sys; from enginehouse.contract.store import Store; Store(sys.argv[1]).open('net', '1')"
    return run(program, store.url)


def run(program: str, *arguments: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.Popen([sys.executable, "-c", program, *arguments], stderr=subprocess.PIPE, env=environment)


def wait_for(what: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 20
    while not what():
        assert time.monotonic() < deadline, "nothing came of it"
        time.sleep(0.01)


def partial_bytes(tmp_path: Path) -> int:
    return sum(part.stat().st_size for part in (tmp_path / "cache" / ".parts").glob("*"))


def exists(url: str) -> bool:
    fs = S3FileSystem()
    fs.invalidate_cache()
    return bool(fs.exists(url))


def cached(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "cache").glob("[!.]*/**/model.onnx"))


def test_what_is_published_is_listed_and_opened(store: Store) -> None:
    assert store.models() == []
    for version in ("9", "10"):
        store.publish(bundle_folder(store, version, onnx=SMALL), "net", version)
    assert store.models() == ["net"]
    assert store.versions("net") == ["9", "10"]
    assert store.manifest("net", "10").version == "10"
    assert content(store.open("net", "10"), "onnx") == SMALL


def test_only_what_is_asked_for_is_fetched(store: Store, wire: Wire) -> None:
    store.publish(bundle_folder(store, onnx=SMALL, openvino=SMALL[::-1], big=BIG), "net", "1")
    wire.came = 0
    bundle = store.open("net", "1", ["onnx"])
    assert content(bundle, "onnx") == SMALL
    assert wire.came < 1.1 * MB
    with pytest.raises(ArtifactMissing):
        content(bundle, "openvino")
    wire.came = 0
    assert content(store.open("net", "1", ["onnx", "openvino"]), "openvino") == SMALL[::-1]
    assert wire.came < 1.1 * MB
    with pytest.raises(ArtifactMissing, match="no artifact 'int8'; the bundle has onnx, openvino, big"):
        store.open("net", "1", ["int8"])


def test_a_file_that_was_damaged_in_the_cache_is_fetched_again(store: Store) -> None:
    store.publish(bundle_folder(store, onnx=SMALL), "net", "1")
    bundle = store.open("net", "1")
    (bundle.path / "onnx" / "model.onnx").write_bytes(SMALL[:-1] + b"\0")
    with pytest.raises(DigestMismatch):
        content(bundle, "onnx")
    assert content(store.open("net", "1"), "onnx") == SMALL


def test_a_download_that_was_killed_is_resumed_by_the_next_process(store: Store, wire: Wire, tmp_path: Path) -> None:
    store.publish(bundle_folder(store, big=BIG), "net", "1")
    wire.bytes_per_s = 20 * MB
    process = opener(store)
    wait_for(lambda: partial_bytes(tmp_path) >= 32 * MB)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert cached(tmp_path) == []
    wire.bytes_per_s, wire.came = 1e12, 0
    assert is_big(store.open("net", "1"))
    assert wire.came < 9 * MB


def test_what_a_damaged_partial_download_holds_is_not_used(store: Store, tmp_path: Path) -> None:
    store.publish(bundle_folder(store, big=BIG), "net", "1")
    part = tmp_path / "cache" / ".parts" / hashlib.sha256(BIG).hexdigest()
    part.parent.mkdir(parents=True, exist_ok=True)
    part.write_bytes(b"\0" * 9 * MB)
    assert is_big(store.open("net", "1"))


def test_broken_connections_are_mended_while_something_comes(store: Store, wire: Wire) -> None:
    store.publish(bundle_folder(store, big=BIG), "net", "1")
    wire.came, wire.breaks_at = 0, [mark * MB for mark in (3, 5, 20, 33, 39)]
    assert is_big(store.open("net", "1"))
    assert wire.breaks_at == []


def test_a_server_that_dies_is_named_and_the_rest_fetched_when_it_is_back(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # Amazon's client would otherwise try for most of a minute before each error.
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    server = Server()
    for wire in connect(server, monkeypatch, tmp_path):
        store = new_store(tmp_path)
        folder = bundle_folder(store, big=BIG)
        store.publish(folder, "net", "1")
        wire.bytes_per_s = 20 * MB
        with ThreadPoolExecutor(1) as background:
            opening = background.submit(Store(store.url).open, "net", "1")
            wait_for(lambda: partial_bytes(tmp_path) >= 32 * MB)
            server.kill()
            wire.shutdown()
            wire.server_close()
            with pytest.raises(
                StoreUnavailable, match=r"s3://bucket-.*/models/net/1/big/model\.onnx cannot be fetched"
            ):
                opening.result(60)
        assert cached(tmp_path) == []
    server.start()
    for wire in connect(server, monkeypatch, tmp_path):
        again = new_store(tmp_path)
        again.publish(folder, "net", "1")
        wire.came = 0
        assert is_big(again.open("net", "1"))
        assert wire.came < 9 * MB
    server.kill()


@pytest.mark.parametrize("found", [SMALL[:-1] + b"\0", SMALL[:-1], SMALL + b"\0"], ids=["changed", "shorter", "longer"])
def test_an_object_that_is_not_what_the_manifest_promises_never_gets_into_the_cache(
    store: Store, tmp_path: Path, found: bytes
) -> None:
    target = store.publish(bundle_folder(store, onnx=SMALL), "net", "1")
    S3FileSystem().pipe_file(f"{target}/onnx/model.onnx", found)
    with pytest.raises(DigestMismatch) as refused:
        store.open("net", "1")
    assert refused.value.args[:2] == (f"s3://{target}/onnx/model.onnx", hashlib.sha256(SMALL).hexdigest())
    assert cached(tmp_path) == []
    S3FileSystem().pipe_file(f"{target}/onnx/model.onnx", SMALL)
    assert content(store.open("net", "1"), "onnx") == SMALL


@pytest.mark.slow
def test_a_bucket_that_is_gone_is_an_outage_and_a_version_that_is_not_there_is_none(store: Store, wire: Wire) -> None:
    with pytest.raises(StoreUnavailable, match="cannot be read: FileNotFoundError"):
        store.manifest("net", "1")
    store.publish(bundle_folder(store, small=SMALL), "net", "1")
    with pytest.raises(ManifestInvalid, match="net/2/manifest.json"):
        store.manifest("net", "2")
    assert store.manifest("net", "1").name == "net"
    wire.breaks_at = [wire.came] * 100
    with pytest.raises(StoreUnavailable, match="cannot be read"):
        store.open("net", "1")


def test_an_object_that_is_gone_is_named(store: Store) -> None:
    target = store.publish(bundle_folder(store, onnx=SMALL), "net", "1")
    S3FileSystem().rm_file(f"{target}/onnx/model.onnx")
    with pytest.raises(ArtifactMissing, match=f"s3://{target}/onnx/model.onnx: .* not in the store"):
        store.open("net", "1")


def test_processes_that_open_together_fetch_once(store: Store, wire: Wire) -> None:
    store.publish(bundle_folder(store, big=BIG), "net", "1")
    wire.came, wire.bytes_per_s = 0, 40 * MB
    processes = [opener(store) for _ in range(2)]
    assert [process.wait(60) for process in processes] == [0, 0]
    assert wire.came < 1.1 * len(BIG)
    assert is_big(store.open("net", "1"))


def test_of_many_publishers_one_wins_and_its_files_are_the_ones(store: Store) -> None:
    contents = [random.Random(turn).randbytes(MB) for turn in range(4)]
    start = threading.Barrier(4)

    def attempt(turn: int) -> str:
        mine = Store(store.url)
        folder = bundle_folder(mine, onnx=contents[turn])
        start.wait(5)
        try:
            mine.publish(folder, "net", "1")
        except BuildError as error:
            return str(error)
        return "published"

    with ThreadPoolExecutor(4) as publishers:
        told = list(publishers.map(attempt, range(4)))
    winner = told.index("published")
    assert all("is being published by" in other or "immutable" in other for other in told if other != "published")
    assert told.count("published") == 1
    assert content(store.open("net", "1"), "onnx") == contents[winner]


def test_a_publisher_that_was_killed_leaves_no_version_and_is_succeeded(store: Store, wire: Wire) -> None:
    folder = bundle_folder(store, big=BIG, onnx=SMALL)
    wire.bytes_per_s = 5 * MB
    program = "import sys, pathlib; from enginehouse.contract.store import Store; "
    program += "Store(sys.argv[1]).publish(pathlib.Path(sys.argv[2]), 'net', '1')"
    process = run(program, store.url, str(folder))
    claim = f"{store.url}/net/1/.publishing"
    wait_for(lambda: exists(claim))
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    wire.bytes_per_s = 1e12
    assert store.versions("net") == []
    with pytest.raises(BuildError, match=f"is being published by .*process {process.pid}.*remove {claim}"):
        store.publish(folder, "net", "1")
    S3FileSystem().rm_file(claim)
    store.publish(folder, "net", "1")
    assert is_big(store.open("net", "1", ["big"]))


def test_a_claim_that_is_not_renewed_expires(store: Store) -> None:
    claim = f"{store.url}/net/1/.publishing"
    S3FileSystem().pipe_file(claim, f'{{"token": "0", "by": "a", "at": {time.time() - 3700}}}'.encode())
    store.publish(bundle_folder(store, onnx=SMALL), "net", "1")
    assert store.versions("net") == ["1"]
    assert not exists(claim)


def test_a_store_is_asked_whether_it_can_be_written_and_left_as_it_was(store: Store) -> None:
    store.check_writable("net")
    assert S3FileSystem().find(store.url, refresh=True) == []
    nowhere = Store("s3://no-such-bucket/models")
    with pytest.raises(ConfigError, match="s3://no-such-bucket/models' cannot be written: .*; choose another --store"):
        nowhere.check_writable("net")


def test_a_failed_upload_leaves_nothing(store: Store) -> None:
    folder = bundle_folder(store, onnx=SMALL)
    (folder / "onnx" / "unreadable").symlink_to("/proc/self/mem")
    with pytest.raises(BuildError, match=f"{store.url}/net/1 cannot be published"):
        store.publish(folder, "net", "1")
    assert S3FileSystem().find(store.url, refresh=True) == []
