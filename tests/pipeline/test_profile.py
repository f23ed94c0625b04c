"""Latency is measured in turns, every engine in a process of its own, by rules that call noise by its name."""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import openvino
import psutil
import pytest
from onnx import helper

from enginehouse.contract import tensor_file
from enginehouse.contract.bundle import MANIFEST, Bundle, sha256_of
from enginehouse.contract.manifest import Artifact, Axis, EngineKind, File, Manifest, SignatureRecord
from enginehouse.contract.tensors import Signature, TensorSpec
from enginehouse_build.judge import profile
from enginehouse_build.judge.profile import MOST_BYTES, MOST_ENGINES, grid, groups, measure, table
from enginehouse_build.judge.stopwatch import Cell, Window, write_order

from .conftest import write_onnx

FP32 = np.dtype(np.float32)
ORT: tuple[EngineKind, str] = ("onnxruntime-cpu", "onnx-fp32")
OPENVINO: tuple[EngineKind, str] = ("openvino-cpu", "openvino-fp32")
WORDS = Axis(name="words", min=8, opt=8, max=16, dims=(("x", 1),))
SAMPLES = {"x": np.ones((100, 8), np.float32)}


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """y = x * x for rows of any length, as an ONNX and an OpenVINO artifact."""
    folder = tmp_path / "bundle"
    for name in ("onnx-fp32", "openvino-fp32"):
        (folder / name).mkdir(parents=True)
    shape = {"x": ["batch", "words"]}, {"y": ["batch", "words"]}
    source = write_onnx(folder / "onnx-fp32" / "model.onnx", [helper.make_node("Mul", ["x", "x"], ["y"])], *shape)
    openvino.save_model(
        openvino.Core().read_model(source), folder / "openvino-fp32" / "model.xml", compress_to_fp16=False
    )
    spec = Signature((TensorSpec("x", FP32, (None, None)),), (TensorSpec("y", FP32, (None, None)),))
    return _written(folder, spec, (WORDS,))


def _written(folder: Path, signature: Signature, axes: tuple[Axis, ...] = (), max_batch: int = 4) -> Bundle:
    artifacts = tuple(_artifact(folder, part) for part in sorted(folder.iterdir()) if part.is_dir())
    manifest = Manifest(
        name="square",
        version="1",
        created="2026-01-01T00:00:00Z",
        source="tests",
        signature=SignatureRecord.of(signature),
        max_batch=max_batch,
        axes=axes,
        artifacts=artifacts,
    )
    (folder / MANIFEST).write_text(manifest.model_dump_json())
    return Bundle.open(folder)


def _artifact(folder: Path, part: Path) -> Artifact:
    files = [
        File(path=file.relative_to(folder).as_posix(), sha256=sha256_of(file), bytes=file.stat().st_size)
        for file in sorted(part.iterdir())
    ]
    fmt, _, precision = part.name.partition("-")
    return Artifact.model_validate(
        {"name": part.name, "format": fmt, "precision": precision, "status": "ready", "files": files}
    )


def stopwatches() -> list[psutil.Process]:
    """The measuring processes of this one, which may have others from other tests."""
    return [child for child in psutil.Process().children() if is_stopwatch(child)]


def is_stopwatch(process: psutil.Process) -> bool:
    try:
        return "enginehouse_build.judge.stopwatch" in process.cmdline()
    except psutil.Error:
        return False


@contextlib.contextmanager
def sent(number: signal.Signals, artifact: str) -> Iterator[None]:
    """Send a signal to the process that measures `artifact` as soon as it is there."""
    over = threading.Event()

    def watch() -> None:
        while not over.is_set():
            for child in psutil.Process().children():
                # Others come and go.
                with contextlib.suppress(psutil.Error):
                    if artifact in child.cmdline():
                        child.send_signal(number)
                        return
            time.sleep(0.01)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_every_engine_is_measured_at_every_number_of_rows_and_size(bundle: Bundle) -> None:
    tables, faults = measure(bundle, [ORT, OPENVINO], SAMPLES, threads=1)
    assert not faults
    assert [(measured.engine, measured.artifact) for measured in tables] == [ORT, OPENVINO]
    for measured in tables:
        assert [(point.rows, point.size) for point in measured.points] == [
            (rows, size) for size in (8, 16) for rows in (1, 2, 4)
        ]
        assert all(0 < point.min_ms <= point.median_ms <= point.p90_ms for point in measured.points)
        # Microseconds each: a window of 0.05 s has room for hundreds.
        assert all(point.count >= 100 for point in measured.points)
        assert (measured.threads, measured.host) == (1, platform.node())
        assert (measured.verdict == "VALID") == (measured.reason == "")
    assert not stopwatches()


def test_one_row_of_the_usual_size_comes_first_and_all_large_ones_last(bundle: Bundle) -> None:
    words = WORDS.model_copy(update={"min": 2})
    cells = grid(bundle.manifest.model_copy(update={"axes": (words,)}))
    assert cells[0] == (1, 8)
    assert set(cells[:5]) == {(1, 8), (2, 8), (4, 8), (1, 2), (1, 16)}
    assert cells[-1] == (4, 16)
    assert len(set(cells)) == len(cells) == 9


def test_without_time_only_the_first_point_is_measured_and_larger_ones_are_predicted(bundle: Bundle) -> None:
    (measured,), _ = measure(bundle, [ORT], SAMPLES, threads=1, budget_s=0.0)
    (point,) = measured.points
    assert (point.rows, point.size) == (1, 8)
    assert measured.predict_ms(4, 16) == pytest.approx(8 * point.median_ms)


def test_in_a_hurry_one_round_of_the_ends_is_measured_and_called_so(bundle: Bundle) -> None:
    (measured,), faults = measure(bundle, [ORT], SAMPLES, threads=1, quick=True)
    assert not faults
    assert [(point.rows, point.size) for point in measured.points] == [(1, 8), (4, 8)]
    assert (measured.verdict, measured.reason) == ("QUICK", profile.QUICK)
    assert 0 < measured.predict_ms(2, 16) < 60_000


def test_a_model_without_a_batch_is_measured_with_its_samples(tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    (folder / "onnx-fp32").mkdir(parents=True)
    node = helper.make_node("Mul", ["x", "x"], ["y"])
    write_onnx(folder / "onnx-fp32" / "model.onnx", [node], {"x": [3, 2]}, {"y": [3, 2]})
    fixed = Signature((TensorSpec("x", FP32, (3, 2)),), (TensorSpec("y", FP32, (3, 2)),), batched=False)
    bundle = _written(folder, fixed, max_batch=1)
    (measured,), faults = measure(bundle, [ORT], {"x": np.ones((3, 2), np.float32)}, threads=1)
    assert not faults
    assert [(point.rows, point.size) for point in measured.points] == [(1, None)]


def test_a_process_that_is_killed_costs_only_its_own_table(bundle: Bundle) -> None:
    with sent(signal.SIGKILL, OPENVINO[1]):
        tables, faults = measure(bundle, [ORT, OPENVINO], SAMPLES, threads=1, budget_s=0.0)
    assert [measured.artifact for measured in tables] == [ORT[1]]
    assert faults.keys() == {OPENVINO}
    assert "ended by SIGKILL" in faults[OPENVINO]


def test_a_process_that_hangs_is_given_up(bundle: Bundle) -> None:
    with sent(signal.SIGSTOP, OPENVINO[1]):
        tables, faults = measure(bundle, [ORT, OPENVINO], SAMPLES, threads=1, budget_s=0.0, patience_s=10.0)
    assert [measured.artifact for measured in tables] == [ORT[1]]
    assert faults.keys() == {OPENVINO}
    assert "no answer within 10 s" in faults[OPENVINO]
    assert not stopwatches()


def test_an_engine_that_does_not_load_says_why(bundle: Bundle) -> None:
    (bundle.path / "onnx-fp32" / "model.onnx").write_bytes(b"not a model")
    tables, faults = measure(bundle, [ORT], SAMPLES, threads=1)
    assert not tables
    assert faults[ORT].startswith("DigestMismatch: ")


def test_measuring_processes_end_with_a_parent_that_is_killed(bundle: Bundle) -> None:
    program = (
        "import pathlib, numpy; from enginehouse.contract.bundle import Bundle; "
        "from enginehouse_build.judge.profile import measure; "
        f"bundle = Bundle.open(pathlib.Path({str(bundle.path)!r})); "
        f"measure(bundle, [{ORT}, {OPENVINO}], {{'x': numpy.ones((4, 8), 'float32')}}, 1)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    parent = psutil.Popen([sys.executable, "-c", program], env=environment)
    deadline = time.monotonic() + 30
    while len(children := parent.children()) < 2:
        assert parent.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    parent.kill()
    parent.wait()
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="this kernel does not tell who waits for a CPU")
def test_a_busy_machine_makes_a_table_invalid(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    # No time for further rounds: three are made all the same.
    monkeypatch.setattr(profile, "RETRY_S", 0.0)
    crowd = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2 * (os.cpu_count() or 1))]
    try:
        (measured,), _ = measure(bundle, [ORT], SAMPLES, threads=1, budget_s=0.0)
    finally:
        for process in crowd:
            process.kill()
            process.wait()
    assert measured.verdict == "INVALID"
    assert "at rows 1, size 8 only 0 of 3 rounds count" in measured.reason
    assert "waiting for a CPU" in measured.reason


def rounds(*medians_ms: float, waited: float = 0.0) -> list[Window]:
    """Windows of three calls around each median."""
    return [Window([ms * 0.9e-3, ms * 1e-3, ms * 1.2e-3], waited) for ms in medians_ms]


def judged(cells: dict[Cell, list[Window]]) -> tuple[str, str]:
    measured = table(*ORT, 1, cells)
    return measured.verdict, measured.reason


def test_three_rounds_that_agree_make_a_valid_point() -> None:
    measured = table(*ORT, 1, {(1, None): rounds(10, 10.5, 10.9)})
    (point,) = measured.points
    assert (measured.verdict, measured.reason) == ("VALID", "")
    assert (point.median_ms, point.min_ms, point.count) == (pytest.approx(10.5), pytest.approx(9.0), 9)
    assert point.spread == pytest.approx(0.09)


def test_figures_are_those_of_the_latest_three_rounds_when_these_agree() -> None:
    (point,) = table(*ORT, 1, {(1, None): rounds(30, 10, 20, 10, 10, 11)}).points
    assert (point.median_ms, point.count, point.spread) == (pytest.approx(10), 9, pytest.approx(0.1))


def test_a_point_that_never_settles_is_named_with_its_spread() -> None:
    settled, noisy = rounds(1, 1, 1), rounds(4, 5, 6, 5)
    verdict, reason = judged({(1, 64): settled, (2, 64): noisy})
    assert verdict == "INVALID"
    assert "1 of 2 points" in reason
    assert "rows 2, size 64" in reason
    assert "4 rounds lie 50% apart" in reason
    (_, point) = table(*ORT, 1, {(1, 64): settled, (2, 64): noisy}).points
    assert point.count == 12


def test_the_noisiest_point_gives_the_reason() -> None:
    assert "rows 4 " in judged({(2, None): rounds(1, 2, 1), (4, None): rounds(1, 3, 1)})[1]


def test_two_rounds_are_too_few() -> None:
    assert judged({(1, None): rounds(1, 1)})[0] == "INVALID"


def test_rounds_in_which_the_engine_had_to_wait_do_not_count() -> None:
    calm, crowded = rounds(10, 10, 10), rounds(20, 20, 20, waited=0.8)
    (point,) = table(*ORT, 1, {(1, None): [crowded[0], calm[0], crowded[1], *calm[1:], crowded[2]]}).points
    assert (point.median_ms, point.spread) == (pytest.approx(10), 0)
    verdict, reason = judged({(1, None): calm[:2] + crowded})
    assert verdict == "INVALID"
    assert "only 2 of 5 rounds count" in reason
    assert "80% of the time" in reason


def test_crowded_rounds_are_better_than_none() -> None:
    (point,) = table(*ORT, 1, {(1, None): rounds(20, 22, waited=0.8)}).points
    assert (point.median_ms, point.count) == (pytest.approx(20.5, abs=2), 6)


def test_points_are_listed_by_size_and_rows() -> None:
    cells: list[Cell] = [(4, 8), (1, 16), (1, 8), (2, 8)]
    points = table(*ORT, 1, dict.fromkeys(cells, rounds(1, 1, 1))).points
    assert [(point.rows, point.size) for point in points] == [(1, 8), (2, 8), (4, 8), (1, 16)]


def test_few_engines_are_alive_together(bundle: Bundle) -> None:
    targets: list[tuple[EngineKind, str]] = [ORT, OPENVINO, ORT, OPENVINO, ORT]
    assert list(groups(bundle.manifest, targets)) == [targets[:MOST_ENGINES], targets[MOST_ENGINES:]]


def test_large_artifacts_are_alive_alone(bundle: Bundle) -> None:
    onnx, small = bundle.manifest.artifacts
    large = onnx.model_copy(update={"files": (onnx.files[0].model_copy(update={"bytes": MOST_BYTES}),)})
    manifest = bundle.manifest.model_copy(update={"artifacts": (large, small)})
    assert list(groups(manifest, [OPENVINO, ORT, OPENVINO])) == [[OPENVINO], [ORT], [OPENVINO]]


def test_processes_are_given_no_more_samples_than_the_largest_batch(bundle: Bundle, tmp_path: Path) -> None:
    write_order(tmp_path / "order", bundle, SAMPLES, threads=1)
    (samples,) = tensor_file.read(tmp_path / "order")
    assert len(samples["x"]) == bundle.manifest.max_batch == 4
