"""The cache of steps: what is in it is data, and nobody else's."""

from __future__ import annotations

import math
import os
import pickle
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from tests.integration import bundles
from tests.unit.other_user import UID, as_other_user, needs_root, plants, reads

from enginehouse.contract.bundle import MANIFEST
from enginehouse.contract.errors import ConfigError
from enginehouse.contract.latency import LatencyPoint, LatencyTable
from enginehouse.contract.manifest import Axis, Manifest
from enginehouse.contract.tensors import DTYPES, Signature, TensorSpec
from enginehouse_build.convert.tensorrt import Converted
from enginehouse_build.judge.stopwatch import Window
from enginehouse_build.judge.verify import Verified
from enginehouse_build.reference.reference import Reference
from enginehouse_build.steps import records
from enginehouse_build.steps.kept_steps import KeptSteps

BUILD = "enginehouse_build"
AXIS = Axis(name="sequence", dims=(("ids", 1),), min=1, opt=4, max=8)
TABLE = LatencyTable(
    engine="onnxruntime-cpu", artifact="onnx-fp32", host="h", threads=1, verdict="VALID",
    points=(LatencyPoint(rows=1, median_ms=1.5, p90_ms=2.0, min_ms=1.0, count=5),),
)  # fmt: skip
SPECS = [TensorSpec(name, dtype, (None, "n", 3)) for name, dtype in DTYPES.items()]
VALUES: list[Any] = [
    *(
        None,
        True,
        0,
        -(1 << 70),
        1.5,
        "text \u2028 \ud83d".encode("utf-16", "surrogatepass").decode("utf-16", "replace"),
    ),
    *([], (), {}, (1, [2, (3,)]), {"a": {"b": 1}, ("x", 1): [2.5]}, {1: "one", None: "none"}, b"\x00\xff"),
    *(math.inf, -math.inf, Path("/a/b"), frozenset({1, 2}), {"int": 1}, {"made": ["os:system", {}]}),
    *(AXIS, TABLE, Window((0.1, 0.2), 0.5), Converted(requires={"a": "b"}, remarks=("x",))),
    Signature(tuple(SPECS), tuple(SPECS[:2])),
    Verified("failed", None, None, ("onnxruntime-cpu",), reason="r", extents={"n": 4}),
    Reference(Signature((SPECS[0],), (SPECS[1],)), (AXIS,), 8, "o", ("r",), "", "", None, False, {"f": "d"}),
    ([TABLE], {("openvino-cpu", "openvino-fp32"): "fault"}),
]


@pytest.mark.parametrize("value", VALUES, ids=[str(number) for number in range(len(VALUES))])
def test_what_a_step_returns_comes_back(value: Any) -> None:
    back = records.loads(records.dumps(value))
    assert back == value and type(back) is type(value)


def test_numbers_of_numpy_come_back(tmp_path: Path) -> None:
    for number in (np.float64(0.1), np.float32(0.5), np.int64(1 << 60), np.bool_(True)):
        assert records.loads(records.dumps((number,))) == (number,)
    for array in (np.arange(6.0).reshape(2, 3), np.array([[1, 2]], np.uint8), np.array([math.inf, 1], np.float32)):
        np.testing.assert_array_equal(records.loads(records.dumps(array)), array)
    assert math.isnan(records.loads(records.dumps(math.nan)))


def test_a_manifest_is_written_the_same_again(tmp_path: Path) -> None:
    manifest = Manifest.parse((bundles.publish(tmp_path, "m", "1", 2) / MANIFEST).read_bytes(), "m")
    back = records.loads(records.dumps(manifest))
    for options in ({}, {"exclude_unset": True}, {"exclude_defaults": True}):
        assert back.model_dump_json(**options) == manifest.model_dump_json(**options)


@dataclass
class Strange:
    x: int = 1


def test_what_is_no_data_is_not_kept() -> None:
    for value in (Strange(), object(), print, KeptSteps, lambda: 1):
        with pytest.raises((TypeError, ValueError)):
            records.dumps(value)


@pytest.mark.parametrize(
    "name",
    [
        *("os:system", "subprocess:Popen", "builtins:eval", "pathlib:Path", "tests.planted:plant"),
        *("enginehouse.engines.worker_process:WorkerProcess", "enginehouse_build.steps.kept_steps:KeptSteps"),
        *("enginehouse_build.inputs.functions:load_function", "enginehouse.contract.store:Store"),
        *("enginehouse_build.steps.records:dataclasses.fields", "enginehouse_build.steps.records:importlib"),
        *(
            "enginehouse_build.steps.records:BaseModel",
            f"{BUILD}.nowhere:X",
            "enginehouse_build..os:system",
        ),
    ],
)
def test_nothing_but_data_is_made(name: str) -> None:
    for fields in ({"map": []}, {"map": [["args", ["touch", "/tmp/never"]]]}):
        with pytest.raises(ValueError):
            records.loads(orjson.dumps({"made": [name, fields]}))


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"{}",
        b'{"a":1,"b":2}',
        b'{"call":1}',
        b'{"tuple":1}',
        b'{"dtype":"x"}',
        b"\x80\x04N.",
        b'{"made":[]}',
    ],
)
def test_what_is_no_record_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError):
        records.loads(text)


class Bomb:
    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.where),)

    def __init__(self, where: Path) -> None:
        self.where = where


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ENGINEHOUSE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("name", ["result", "result.json"])
def test_what_was_planted_does_not_run(cache: Path, tmp_path: Path, name: str) -> None:
    kept = KeptSteps()
    with kept.staging() as entry:
        kept.put("key", entry, 1)
    (cache / "steps" / "key" / name).write_bytes(pickle.dumps((Bomb(tmp_path / "ran"), {})))
    kept.get("key")
    assert not (tmp_path / "ran").exists()


@needs_root
@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_the_cache_is_its_users_alone(cache: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        kept = KeptSteps()
        with kept.staging() as entry:
            (entry / "files" / "f").write_text("x")
            kept.put("key", entry, 1)
    finally:
        os.umask(before)
    for folder in (cache, cache / "steps", cache / "steps" / "key"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for parent in (cache.parent, *cache.parent.parents):
        if parent != Path("/tmp") and parent.is_relative_to("/tmp"):
            parent.chmod(0o755)
    assert not as_other_user(reads(cache / "steps" / "key" / "result.json"))
    assert not as_other_user(plants(cache / "steps" / "key"))


@needs_root
def test_one_that_another_user_made_is_refused_and_an_open_one_tightened(cache: Path) -> None:
    (cache / "steps").mkdir(parents=True)
    cache.chmod(0o777)
    (cache / "steps").chmod(0o777)
    KeptSteps()
    assert stat.S_IMODE(cache.stat().st_mode) == stat.S_IMODE((cache / "steps").stat().st_mode) == 0o700
    for theirs in (cache / "steps", cache):
        os.chown(theirs, UID, UID)
        with pytest.raises(ConfigError, match="ENGINEHOUSE_CACHE"):
            KeptSteps()
        os.chown(theirs, 0, 0)


@needs_root
def test_a_step_that_another_user_put_there_is_not_used(cache: Path) -> None:
    kept = KeptSteps()
    with kept.staging() as entry:
        kept.put("key", entry, 1)
    assert kept.get("key") is not None
    os.chown(cache / "steps" / "key", UID, UID)
    assert kept.get("key") is None
