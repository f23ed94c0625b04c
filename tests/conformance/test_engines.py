"""What every engine promises, whatever its library does. See `enginehouse.engines.Engine`."""

from __future__ import annotations

import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numpy.random import Generator
from tests.conformance import bad_requests
from tests.conformance.conftest import MAX_ROWS, Load, Publish
from tests.conformance.models import BIAS, BY_NAME, CASES, DISAGREEING, WEIGHT, Case

from enginehouse.contract.bundle import Bundle, sha256_of
from enginehouse.contract.errors import ConfigError, DigestMismatch, EngineUnavailable, InvalidInput
from enginehouse.contract.manifest import ACCELERATOR_OF, ENGINE_KINDS, FORMAT_OF, EngineKind
from enginehouse.contract.tensors import Tensors
from enginehouse.engines import load_engine
from enginehouse.engines.hardware import probe_gpus

AFFINE = BY_NAME["affine"]
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def assert_answers(case: Case, outputs: Tensors, inputs: Tensors) -> None:
    """Names in the signature's order, dtypes, shapes, and values against the model's own numpy check."""
    assert list(outputs) == [spec.name for spec in case.signature.outputs]
    for spec in case.signature.outputs:
        have, want = outputs[spec.name], case.expected(inputs)[spec.name]
        assert have.dtype == spec.dtype
        assert have.shape == want.shape
        if spec.dtype.hasobject or case.tolerance == 0:
            assert have.tolist() == want.tolist()
        else:
            np.testing.assert_allclose(have, want, rtol=case.tolerance, atol=case.tolerance)


@every_case
@pytest.mark.parametrize("rows", [1, 3, MAX_ROWS])
def test_answers_are_those_of_numpy(load: Load, case: Case, rows: int, rng: Generator) -> None:
    inputs = case.sample(rng, rows)
    assert_answers(case, load(case).infer(inputs), inputs)


@every_case
def test_inputs_are_left_as_they_were(load: Load, case: Case, rng: Generator) -> None:
    inputs = case.sample(rng, 3)
    before = {name: array.copy() for name, array in inputs.items()}
    load(case).infer(inputs)
    assert all((inputs[name] == before[name]).all() for name in before)


def test_inputs_need_not_be_writable_or_contiguous(load: Load, rng: Generator) -> None:
    engine = load(AFFINE)
    wide = rng.standard_normal((3, 128), dtype=np.float32)
    wide.flags.writeable = False
    for view in (
        wide[:, ::2],
        np.asfortranarray(wide[:, :64]),
        np.frombuffer(wide.tobytes(), np.float32).reshape(6, 64),
    ):
        assert_answers(AFFINE, engine.infer({"x": view}), {"x": view})


@every_case
def test_the_caller_owns_the_outputs(load: Load, case: Case, rng: Generator) -> None:
    engine = load(case)
    inputs = case.sample(rng, 3)
    outputs = engine.infer(inputs)
    kept = {name: array.copy() for name, array in outputs.items()}
    engine.infer(case.sample(rng, 3))
    for name, array in outputs.items():
        assert (array == kept[name]).all(), "a later call changed an earlier answer"
        assert array.flags.writeable
        assert array.flags.owndata or (isinstance(array.base, np.ndarray) and array.base.flags.owndata)
        assert not any(np.shares_memory(array, given) for given in inputs.values())
        array[...] = array.dtype.type(0) if not array.dtype.hasobject else b""
    assert_answers(case, engine.infer(inputs), inputs)
    engine.close()
    assert all((array == (b"" if array.dtype.hasobject else 0)).all() for array in outputs.values())


@every_case
def test_a_row_does_not_depend_on_its_batch_mates(load: Load, case: Case, rng: Generator) -> None:
    if not case.signature.batched:
        pytest.skip("one request is one row; it has no batch-mates")
    engine = load(case)
    inputs = case.sample(rng, MAX_ROWS)
    alone = [engine.infer({name: array[[row]] for name, array in inputs.items()}) for row in range(MAX_ROWS)]
    together = engine.infer(inputs)
    others = {name: np.roll(array, 1, axis=0) for name, array in inputs.items()}
    for name, array in inputs.items():
        others[name][0] = array[0]
        if np.issubdtype(array.dtype, np.floating):
            others[name][1:] = np.nan
    mixed = engine.infer(others)
    for name, array in together.items():
        assert mixed[name][0].tolist() == array[0].tolist(), "same shape, other mates: not the same bits"
        for row in range(MAX_ROWS):
            # Kernels may differ between batch sizes, so here 1e-6 rather than the same bits.
            if array.dtype.kind == "f" and array.dtype.itemsize > 2:
                np.testing.assert_allclose(alone[row][name][0], array[row], rtol=1e-6, atol=1e-6)
            else:
                assert alone[row][name][0].tolist() == array[row].tolist()


def test_bad_inputs_are_named(load: Load, rng: Generator) -> None:
    engine = load(AFFINE)
    good = AFFINE.sample(rng, 2)["x"]
    for bad, told in (
        ({}, "'x'"),
        ({"x": good, "z": good}, "'z'"),
        ({"x": good.astype(np.float64)}, "float64"),
        ({"x": good[:, :63]}, r"\[2, 63\]"),
        ({"x": good[0]}, r"\[64\]"),
        ({"x": good[:0]}, "0 rows"),
        ({"x": good.tolist()}, "list"),
    ):
        with pytest.raises(InvalidInput, match=told):
            engine.infer(bad)
    assert_answers(AFFINE, engine.infer({"x": good}), {"x": good})


@pytest.mark.parametrize("concurrency", [1, 4])
def test_concurrent_callers_get_their_own_answers(load: Load, concurrency: int, rng: Generator) -> None:
    engine = load(AFFINE, threads=2, concurrency=concurrency)
    requests = [AFFINE.sample(rng, 1 + turn % MAX_ROWS) for turn in range(160)]
    together = threading.Barrier(8)

    def caller(first: int) -> list[dict[str, np.ndarray]]:
        together.wait(10)
        return [engine.infer(request) for request in requests[first::8]]

    with ThreadPoolExecutor(8) as callers:
        answers = list(callers.map(caller, range(8)))
    for first in range(8):
        for request, answer in zip(requests[first::8], answers[first], strict=True):
            assert_answers(AFFINE, answer, request)


def test_closing_twice_is_fine_and_later_calls_say_so(load: Load, rng: Generator) -> None:
    engine = load(AFFINE)
    engine.close()
    engine.close()
    for _ in range(3):
        with pytest.raises(EngineUnavailable, match="closed"):
            engine.infer(AFFINE.sample(rng, 1))


def test_closing_under_load_answers_or_refuses(load: Load, rng: Generator) -> None:
    engine = load(AFFINE, concurrency=2)
    request = AFFINE.sample(rng, MAX_ROWS)
    answered = threading.Semaphore(0)

    def caller() -> bool:
        try:
            while True:
                assert_answers(AFFINE, engine.infer(request), request)
                answered.release()
        except EngineUnavailable:
            return True

    with ThreadPoolExecutor(6) as callers:
        refused = [callers.submit(caller) for _ in range(6)]
        for _ in range(30):
            assert answered.acquire(timeout=10)
        engine.close()
        assert all(future.result(timeout=10) for future in refused)


def test_a_flipped_byte_is_not_loaded(kind: EngineKind, publish: Publish, tmp_path: Path) -> None:
    bundle = publish(AFFINE, FORMAT_OF[kind])
    damaged = Bundle.open(Path(shutil.copytree(bundle.path, tmp_path / "damaged")))
    file = max((damaged.path / "artifact").iterdir(), key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(DigestMismatch, match=file.name):
        load_engine(kind, damaged, damaged.manifest.artifacts[0], threads=1)


def test_what_becomes_of_its_files_changes_no_answer(kind: EngineKind, publish: Publish, tmp_path: Path) -> None:
    """The bytes that were verified answer: not those that somebody copies over them, nor what is left of them."""
    lookup = bad_requests.ALL[0]
    bundle = publish(lookup.model, FORMAT_OF[kind], "fp32")
    copy = Bundle.open(Path(shutil.copytree(bundle.path, tmp_path / "copy")))
    engine = load_engine(kind, copy, copy.manifest.artifacts[0], threads=1)
    expected = engine.infer(lookup.good)["y"]
    for file in (copy.path / "artifact").iterdir():
        size = file.stat().st_size
        with file.open("r+b") as opened:
            opened.write(np.full(size, 7, np.uint8).tobytes())
        np.testing.assert_array_equal(engine.infer(lookup.good)["y"], expected)
        os.truncate(file, 0)
        np.testing.assert_array_equal(engine.infer(lookup.good)["y"], expected)


def test_a_file_that_is_no_model_is_named(kind: EngineKind, publish: Publish, tmp_path: Path) -> None:
    bundle = publish(AFFINE, FORMAT_OF[kind])
    garbled = Bundle.open(Path(shutil.copytree(bundle.path, tmp_path / "garbled")))
    artifact = garbled.manifest.artifacts[0]
    files = []
    for file in artifact.files:
        path = garbled.path / file.path
        path.write_bytes(b"this is no model")
        files.append(file.model_copy(update={"sha256": sha256_of(path)}))
    with pytest.raises(EngineUnavailable, match=str(garbled.path)):
        load_engine(kind, garbled, artifact.model_copy(update={"files": tuple(files)}), threads=1)


def test_an_artifact_without_a_model_file_is_refused(kind: EngineKind, publish: Publish) -> None:
    bundle = publish(AFFINE, FORMAT_OF[kind])
    empty = bundle.manifest.artifacts[0].model_copy(update={"files": ()})
    with pytest.raises(EngineUnavailable, match="has 0 .*needs exactly 1"):
        load_engine(kind, bundle, empty, threads=1)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("case", DISAGREEING, ids=lambda case: case.name)
def test_shapes_that_the_engine_refuses_are_the_requests_fault(
    kind: EngineKind, load: Load, case: Case, threads: int, rng: Generator
) -> None:
    engine = load(case, threads=threads)
    good = case.sample(rng, 2)
    assert_answers(case, engine.infer(good), good)
    with pytest.raises(InvalidInput, match=rf"{kind}: .*\S{{3}}"):
        engine.infer({"a": good["a"], "b": good["b"][:, :3]})
    assert_answers(case, engine.infer(good), good)


@pytest.mark.parametrize("wanted", ENGINE_KINDS)
def test_an_artifact_of_another_format_is_refused(wanted: EngineKind, publish: Publish) -> None:
    bundle = publish(AFFINE, "onnx")
    other = bundle.manifest.artifacts[0].model_copy(
        update={"format": "openvino" if FORMAT_OF[wanted] != "openvino" else "onnx"}
    )
    with pytest.raises(ConfigError, match=wanted):
        load_engine(wanted, bundle, other, threads=1)


def test_a_model_that_is_not_the_manifests_is_refused(kind: EngineKind, publish: Publish) -> None:
    bundle = publish(AFFINE, FORMAT_OF[kind])
    other = publish(BY_NAME["two_by_two"], FORMAT_OF[kind])
    mixed = Bundle(other.path, other.manifest.model_copy(update={"signature": bundle.manifest.signature}))
    with pytest.raises(EngineUnavailable, match="manifest says"):
        load_engine(kind, mixed, mixed.manifest.artifacts[0], threads=1)


@pytest.mark.skipif(bool(probe_gpus().devices), reason="this machine has a GPU")
@pytest.mark.parametrize("wanted", [name for name in ENGINE_KINDS if ACCELERATOR_OF[name] == "gpu"])
def test_without_a_gpu_the_gpu_engines_say_why(wanted: EngineKind, publish: Publish) -> None:
    bundle = publish(AFFINE, "onnx")
    artifact = bundle.manifest.artifacts[0].model_copy(
        update={"format": FORMAT_OF[wanted], "requires": {"flavour": "tensorrt-rtx"}}
    )
    with pytest.raises(EngineUnavailable) as refused:
        load_engine(wanted, bundle, artifact, threads=1)
    assert refused.value.args[0] == wanted
    assert probe_gpus().reason in str(refused.value)
    assert "driver" in str(refused.value)


def test_fp32_is_computed_in_fp32_and_reported_so(load: Load, rng: Generator) -> None:
    engine = load(AFFINE)
    inputs = AFFINE.sample(rng, MAX_ROWS)
    exact = inputs["x"].astype(np.float64) @ WEIGHT + BIAS
    assert engine.precision == "fp32"
    # bf16 and TF32, which libraries choose by themselves, are at 1e-3 here.
    assert np.linalg.norm(engine.infer(inputs)["y"] - exact) < 1e-6 * np.linalg.norm(exact)
