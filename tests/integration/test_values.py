"""Values that one engine answers wrongly are answered by another one, whatever way they come in, or refused.

The bundles are built by the pipeline: OpenVINO makes 0 of NaN in a Relu, and takes ids beyond 2^24 for neighbours.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import onnxruntime
import orjson
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.integration import bundles
from tests.integration.cluster import wait_for
from tests.integration.conftest import House

from enginehouse.contract.bundle import MANIFEST, Bundle
from enginehouse.contract.errors import InvalidInput, NoBackend
from enginehouse.contract.manifest import Manifest
from enginehouse.contract.tensors import datatype

#: OpenVINO is preferred for what it is right for, however late the machine makes it.
TIMES = (bundles.table("onnxruntime-cpu", 100.0), bundles.table("openvino-cpu", 0.1))
RNG = np.random.default_rng(3)
X = RNG.standard_normal((3, 4), dtype=np.float32)
NAN = X.copy()
NAN[1, 2] = np.nan
INFINITE = X.copy()
INFINITE[0, 0] = -np.inf
FEATURES = {"x": X}
IDS = {"item": np.array([[7], [9]]), "history": np.array([[7, 8, 9], [8, 8, 9]])}
LARGE = {name: array + 2**30 for name, array in IDS.items()}


def swallowing() -> onnx.ModelProto:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Relu", ["h"], ["y"])]
    return _model(nodes, [("x", TensorProto.FLOAT, 4)], 2, {"w": RNG.standard_normal((4, 2), dtype=np.float32)})


def comparing() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Equal", ["item", "history"], ["same"]),
        helper.make_node("Cast", ["same"], ["y"], to=TensorProto.FLOAT),
    ]
    return _model(nodes, [("item", TensorProto.INT64, 1), ("history", TensorProto.INT64, 3)], 3, {})


def _model(
    nodes: list[onnx.NodeProto], inputs: list[tuple[str, int, int]], width: int, constants: Mapping[str, np.ndarray]
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "values",
        [helper.make_tensor_value_info(name, kind, ["rows", size]) for name, kind, size in inputs],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", width])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def build(house: House, folder: Path, name: str, proto: onnx.ModelProto, *formats: str) -> Bundle:
    from enginehouse_build import pipeline
    from enginehouse_build.inputs.recipe import Recipe

    source = folder / f"{name}.onnx"
    onnx.save(proto, source)
    built = pipeline.build(
        Recipe.of(
            source=str(source), name=name, store=str(house.store), formats=formats, precisions=("fp32",), threads=1,
            max_batch=8, quick=True,
        )
    )  # fmt: skip
    # Which of two engines is faster for a model this small is chance; here it has to be known.
    names = [artifact.name for artifact in built.manifest.artifacts]
    timed = built.manifest.model_copy(update={"latency": tuple(one for one in TIMES if one.artifact in names)})
    path = house.store / name / built.manifest.version
    (path / MANIFEST).write_text(timed.model_dump_json())
    return Bundle.open(path)


@pytest.fixture(scope="module")
def folder(house: House, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """ONNX files of the models that are served: `swallow` and `compare` by both engines, `vino` by OpenVINO alone."""
    folder = tmp_path_factory.mktemp("models")
    build(house, folder, "swallow", swallowing(), "onnx", "openvino")
    build(house, folder, "compare", comparing(), "onnx", "openvino")
    build(house, folder, "vino", swallowing(), "openvino")
    for name in ("swallow", "compare", "vino"):
        house.add(name, "1")
    for name, inputs in (("swallow", {"x": NAN}), ("compare", LARGE)):
        house.wait_live(name, "gpu-pool", "cpu-pool")
        # Each over a connection of its own: every router is connected to both by then.
        wait_for(lambda: all(post(house, name, inputs).is_success for _ in range(8)), 60, f"{name} everywhere")  # noqa: B023
    yield folder
    for name in ("swallow", "compare", "vino"):
        house.remove(name)


def reference(folder: Path, model: str, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
    session = onnxruntime.InferenceSession(folder / f"{model}.onnx", providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, dict(inputs))[0])


def post(house: House, model: str, inputs: Mapping[str, np.ndarray], **headers: str) -> httpx.Response:
    """Binary, since JSON has no NaN."""
    entries = [
        {
            "name": name,
            "datatype": datatype(array.dtype),
            "shape": array.shape,
            "parameters": {"binary_data_size": array.nbytes},
        }
        for name, array in inputs.items()
    ]
    head = orjson.dumps({"inputs": entries, "outputs": [{"name": "y", "parameters": {"binary_data": True}}]})
    return httpx.post(
        f"http://{house.url}/v2/models/{model}/infer",
        content=head + b"".join(array.tobytes() for array in inputs.values()),
        headers={"Inference-Header-Content-Length": str(len(head))} | headers,
        timeout=30,
    )


def by_http(house: House, model: str, inputs: Mapping[str, np.ndarray]) -> tuple[np.ndarray, str]:
    answer = post(house, model, inputs)
    assert answer.status_code == 200, answer.text
    length = int(answer.headers["inference-header-content-length"])
    (output,) = orjson.loads(answer.content[:length])["outputs"]
    y = np.frombuffer(answer.content[length:], np.float32).reshape(output["shape"])
    return y, answer.headers["enginehouse-backend"]


def by_handle(house: House, model: str, inputs: Mapping[str, np.ndarray]) -> tuple[np.ndarray, str]:
    from enginehouse.faces.python.client import Client

    answer = Client(is_embedded=False).answer(model, inputs)
    return answer["outputs"]["y"], answer["backend"]


def embedded(house: House, model: str, inputs: Mapping[str, np.ndarray]) -> tuple[np.ndarray, str]:
    from enginehouse.faces.python.client import Client

    answer = Client().answer(model, inputs)
    return answer["outputs"]["y"], answer["backend"]


WAYS: Mapping[str, Any] = {"HTTP": by_http, "handle": by_handle, "embedded": embedded}
CASES = {
    "finite": ("swallow", {"x": X}, "cpu-pool"),
    "NaN": ("swallow", {"x": NAN}, "gpu-pool"),
    "infinite": ("swallow", {"x": INFINITE}, "gpu-pool"),
    "small ids": ("compare", IDS, "cpu-pool"),
    "large ids": ("compare", LARGE, "gpu-pool"),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", CASES)
def test_each_value_is_answered_by_the_best_engine_that_is_right_for_it(
    house: House, folder: Path, case: str, way: str
) -> None:
    model, inputs, pool = CASES[case]
    want = reference(folder, model, inputs)
    for _ in range(3):
        y, backend = WAYS[way](house, model, inputs)
        np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-6)
        assert backend == pool


def test_requests_that_share_calls_are_told_apart(house: House, folder: Path) -> None:
    from enginehouse.faces.python.client import Client

    client = Client()
    rows = [
        np.where(RNG.random((1, 4)) < 0.08, np.nan, RNG.standard_normal((1, 4))).astype(np.float32) for _ in range(400)
    ]

    async def all_at_once() -> list[dict[str, Any]]:
        return await asyncio.gather(*(client.answer_async("swallow", {"x": row}) for row in rows))

    answers = asyncio.run(all_at_once())
    wrong = [
        row
        for row, answer in zip(rows, answers, strict=True)
        if not np.allclose(answer["outputs"]["y"], reference(folder, "swallow", {"x": row}), equal_nan=True, atol=1e-5)
        or (answer["backend"] == "cpu-pool" and not np.isfinite(row).all())
    ]
    assert wrong == []
    assert {answer["backend"] for answer in answers} == {"cpu-pool", "gpu-pool"}


def test_a_resident_engine_is_left_out_too(house: House, folder: Path) -> None:
    house.add("swallow", "1", resident=True)
    try:
        resident = "resident-openvino-cpu"
        wait_for(lambda: {by_http(house, "swallow", {"x": X})[1] for _ in range(6)} == {resident}, 60, "both host it")
        for _ in range(6):
            y, backend = by_http(house, "swallow", {"x": NAN})
            assert backend == "gpu-pool"
            np.testing.assert_allclose(y, reference(folder, "swallow", {"x": NAN}), rtol=1e-5)
    finally:
        house.add("swallow", "1")


def test_scoring_answers_rows_with_and_without_such_values(house: House, folder: Path, tmp_path: Path) -> None:
    from pyarrow import dataset

    x = RNG.standard_normal((300, 4), dtype=np.float32)
    x[40, 1] = np.nan
    np.savez(tmp_path / "in.npz", x=x)
    result = house.cluster.cli("score", "swallow", str(tmp_path / "in.npz"), str(tmp_path / "out"), timeout=150)
    assert result.returncode == 0, result.stderr
    table = dataset.dataset(tmp_path / "out").to_table().sort_by("id").to_pydict()
    y = np.array(table["output.y"], np.float32)
    np.testing.assert_allclose(y, reference(folder, "swallow", {"x": x}), rtol=1e-4, atol=1e-5)
    assert table["backend"][40] == "gpu-pool"
    assert set(table["backend"]) == {"cpu-pool", "gpu-pool"}


def test_what_no_artifact_is_right_for_is_refused_with_the_way_out(house: House, folder: Path) -> None:
    y, backend = by_http(house, "vino", {"x": X})
    assert backend == "cpu-pool"
    np.testing.assert_allclose(y, reference(folder, "vino", {"x": X}), rtol=1e-5, atol=1e-6)
    said = (
        "input 'x' has NaN at [1, 2], for which nothing that may answer 'vino@1' is right "
        "(openvino-fp32 on openvino-cpu answers finite 'x' only); build the model with `--formats onnx` too, which "
        "answers as the reference does"
    )
    answer = post(house, "vino", {"x": NAN})
    assert (answer.status_code, answer.json()) == (400, {"error": said})
    for way in (by_handle, embedded):
        with pytest.raises(InvalidInput) as caught:
            way(house, "vino", {"x": NAN})
        assert str(caught.value) == said


def test_a_hint_that_leaves_out_the_right_engine_is_named(house: House, folder: Path) -> None:
    answer = post(house, "swallow", {"x": NAN}, **{"enginehouse-backend": "cpu-pool"})
    assert answer.status_code == 400
    assert "leave out the hint that restricts who may answer" in answer.json()["error"]


def test_while_the_right_engine_is_not_live_the_request_may_be_tried_again(house: House, folder: Path) -> None:
    path = build(house, folder, "broken", swallowing(), "onnx", "openvino").path
    manifest = Manifest.parse((path / MANIFEST).read_bytes(), MANIFEST)
    bundles.flip(path / manifest.artifact("onnx-fp32").files[0].path)
    house.add("broken", "1")
    try:
        wait_for(lambda: house.state("broken", "gpu-pool") == "failing", 60, "its ONNX file does not load")
        assert by_http(house, "broken", {"x": X})[1] == "cpu-pool"
        answer = post(house, "broken", {"x": NAN})
        assert answer.status_code == 503, answer.text
        assert "Retry-After" in answer.headers
        error = answer.json()["error"]
        assert "cpu-pool: its openvino-fp32 answers finite 'x' only, and input 'x' has NaN" in error
        assert "gpu-pool: DigestMismatch" in error
        with pytest.raises(NoBackend):
            embedded(house, "broken", {"x": NAN})
    finally:
        house.remove("broken")


def test_who_answers_what_is_shown(house: House, folder: Path) -> None:
    metadata = httpx.get(f"http://{house.url}/v2/models/compare").json()
    assert metadata["parameters"] == {"openvino-fp32_on_openvino-cpu": "'history' below 2^24, 'item' below 2^24 only"}
    status = house.cluster.cli("status")
    # What several models share is said once, of all of them.
    shown = [line for line in status.stdout.splitlines() if line.endswith(": cpu-pool answers finite 'x' only")]
    assert [line.split(": ")[0].split() for line in shown] == [["vino@1,", "swallow@1"]], status.stdout
    explained = " ".join(house.cluster.cli("explain", "swallow").stdout.split())
    assert "answers finite" in explained
    inspect = (sys.executable, "-m", "enginehouse", "inspect", str(house.store / "swallow"))
    shown = house.cluster.run(*inspect, env={"COLUMNS": "200"})
    assert "openvino-fp32 on openvino-cpu: finite 'x' only" in shown.stdout, shown.stderr
