"""Scoring from and to a store behind the S3 protocol: a real server, real killed processes."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet
from s3fs import S3FileSystem
from tests.pipeline.s3 import Server, connect, new_store
from tests.unit.scoring_jobs import ByFunction, same, score, signature

from enginehouse.contract.errors import ConfigError, StoreUnavailable
from enginehouse.faces.scoring.mapping import Mapped
from enginehouse.faces.scoring.readers import Limits
from enginehouse.faces.scoring.storage import Folder

ROWS = 90
FLAT = signature(np.float32)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.kill()


@pytest.fixture
def bucket(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    for _ in connect(server, monkeypatch, tmp_path):
        yield new_store(tmp_path).url.removesuffix("/models")


def put(url: str, rows: int = ROWS, first: int = 0, group: int = 10) -> None:
    sink = io.BytesIO()
    x = np.arange(first, first + rows, dtype=np.float32)
    parquet.write_table(pa.table({"id": np.arange(first, first + rows), "x": x}), sink, row_group_size=group)
    S3FileSystem().pipe_file(url, sink.getvalue())


def results(target: str) -> pa.Table:
    S3FileSystem().invalidate_cache()
    paths = sorted(S3FileSystem().glob(f"{target}/*.parquet"))
    return pa.concat_tables([parquet.read_table(io.BytesIO(S3FileSystem().cat_file(path))) for path in paths])


class Stops:
    """Says to stop after so many looks."""

    def __init__(self, after: int) -> None:
        self.left = after

    def __call__(self) -> bool:
        self.left -= 1
        return self.left < 0


def test_a_job_goes_on_and_knows_its_files_by_their_etags(bucket: str) -> None:
    for at in range(3):
        put(f"{bucket}/in/{at}.parquet", 30, 30 * at)
    S3FileSystem().pipe_file(f"{bucket}/in/_SUCCESS", b"")
    limits = Limits(10)
    assert not score(f"{bucket}/in", f"{bucket}/out", FLAT, limits=limits, stopping=Stops(3)).is_complete
    by = ByFunction(same)
    report = score(f"{bucket}/in", f"{bucket}/out", FLAT, limits=limits, answering=by)
    assert report.is_complete and 0 < sum(by.calls) < ROWS
    assert results(f"{bucket}/out").column("id").to_pylist() == list(range(ROWS))
    put(f"{bucket}/in/3.parquet", 10, ROWS)
    score(f"{bucket}/in", f"{bucket}/out", FLAT, limits=limits)
    assert results(f"{bucket}/out").column("output.y").to_pylist() == list(range(ROWS + 10))
    put(f"{bucket}/in/0.parquet", 30, 1)
    with pytest.raises(ConfigError, match=r"0\.parquet is another file now"):
        score(f"{bucket}/in", f"{bucket}/out", FLAT, limits=limits)


@pytest.mark.parametrize("form", ["jsonl", "csv", "npz", "arrow", "images"])
def test_every_format_is_read_from_there(bucket: str, form: str) -> None:
    fs, wanted, ids = S3FileSystem(), FLAT, list(range(3))
    if form == "jsonl":
        fs.pipe_file(f"{bucket}/in/a.jsonl", b"\n".join(json.dumps({"id": at, "x": at}).encode() for at in ids))
    elif form == "csv":
        fs.pipe_file(f"{bucket}/in/a.csv", b"id,x\n0,0\n1,1\n2,2\n")
    elif form in ("npz", "arrow"):
        sink = io.BytesIO()
        if form == "npz":
            np.savez(sink, id=np.arange(3), x=np.arange(3, dtype=np.float32))
        else:
            table = pa.table({"id": np.arange(3), "x": np.arange(3, dtype=np.float32)})
            with pa.ipc.new_file(sink, table.schema) as writer:
                writer.write_table(table)
        fs.pipe_file(f"{bucket}/in/a.{form}", sink.getvalue())
    else:
        wanted = signature(np.uint8, 2, 2, 3)
        for at in ids:
            sink = io.BytesIO()
            Image.fromarray(np.full((2, 2, 3), at, np.uint8)).save(sink, "png")
            fs.pipe_file(f"{bucket}/in/{at}.png", sink.getvalue())
    score(f"{bucket}/in", f"{bucket}/out", wanted)
    found = np.array(results(f"{bucket}/out").column("output.y").to_pylist()).reshape(3, -1)
    assert found.min(axis=1).tolist() == found.max(axis=1).tolist() == ids


def test_of_many_that_publish_one_name_one_does(bucket: str) -> None:
    folder = Folder(f"{bucket}/out")
    with ThreadPoolExecutor(8) as threads:
        won = list(threads.map(lambda at: folder.create("name", str(at).encode()), range(8)))
    assert won.count(True) == 1
    assert folder.read("name") == str(won.index(True)).encode()
    assert folder.sizes() == {"name": 1}
    assert folder.read("none") is None


def test_a_bucket_that_is_not_there_is_said(bucket: str) -> None:
    put(f"{bucket}/in.parquet")
    with pytest.raises(StoreUnavailable, match="s3://no-such-bucket/out"):
        score(f"{bucket}/in.parquet", "s3://no-such-bucket/out", FLAT)


CHILD = """
import sys, time
from tests.unit.scoring_jobs import score, signature
from enginehouse.faces.scoring.readers import Limits
import numpy as np
def slowly(inputs):
    time.sleep(0.02)
    return {"y": inputs["x"]}
score(sys.argv[1], sys.argv[2], signature(np.float32), slowly, limits=Limits(10))
"""


@pytest.mark.slow
def test_drivers_that_are_killed_leave_every_row_once(bucket: str) -> None:
    put(f"{bucket}/in.parquet", 600)
    draw = np.random.default_rng(4)
    kills = 0
    while True:
        command = [sys.executable, "-c", CHILD, f"{bucket}/in.parquet", f"{bucket}/out"]
        with subprocess.Popen(command, env=dict(os.environ)) as job:
            if kills < 10:
                time.sleep(2.5 + float(draw.random()) * 2)
                job.send_signal(signal.SIGKILL)
                kills += 1
            if job.wait() == 0:
                break
    assert results(f"{bucket}/out").column("id").to_pylist() == list(range(600))


def test_rejected_rows_and_other_formats_of_results_are_there_too(bucket: str) -> None:
    sink = io.BytesIO()
    parquet.write_table(pa.table({"id": [1, 2], "x": [1.0, 1e300]}), sink)
    S3FileSystem().pipe_file(f"{bucket}/in.parquet", sink.getvalue())
    asked: dict[str, Any] = {"target_format": "jsonl", "mapped": Mapped(rename={"y": "z"})}
    report = score(f"{bucket}/in.parquet", f"{bucket}/out", FLAT, **asked)
    assert (report.written, report.rejected) == (1, 1)
    (path,) = S3FileSystem().glob(f"{bucket}/out/*.jsonl")
    assert json.loads(S3FileSystem().cat_file(path))["z"] == 1.0
    (path,) = S3FileSystem().glob(f"{bucket}/out/_rejected/*.jsonl")
    assert json.loads(S3FileSystem().cat_file(path))["id"] == 2
