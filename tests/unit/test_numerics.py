"""Which artifacts may answer, by catalog or recipe; what is left out is said, and what none meets is refused."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
from tests.unit.test_policy import artifact, manifest, table

from enginehouse.cluster import deploy, moves
from enginehouse.contract import numerics
from enginehouse.contract.bundle import MANIFEST
from enginehouse.contract.config import AppConfig, Catalog, ModelConfig
from enginehouse.contract.errors import ConfigError, ManifestInvalid, StoreUnavailable
from enginehouse.contract.manifest import Manifest, NumericsRule
from enginehouse.routing.remote_versions import RemoteVersions, publish
from enginehouse.routing.view import ModelVersion
from enginehouse.tools.cli.serve import catalog_of, model_of

FP32, INT8 = artifact("onnx-fp32", "onnx"), artifact("openvino-int8", "openvino", precision="int8")
FAILED = artifact("onnx-int8", "onnx", precision="int8", status="failed")


def bundle(*artifacts: Any, **recipe: Any) -> Manifest:
    made = manifest(list(artifacts), table((1, 1.0), artifact="onnx-fp32"))
    return made.model_copy(update={"name": "m", "version": "1", "recipe": recipe})


def put(store: Path, version: str, *artifacts: Any, **recipe: Any) -> None:
    folder = store / "m" / version
    folder.mkdir(parents=True)
    made = bundle(*artifacts, **recipe).model_copy(update={"version": version})
    (folder / MANIFEST).write_text(made.model_dump_json())


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        ("any", ""),
        ("full", "openvino-int8 left out: numerics 'full' is what answers; `--numerics int8` or `--numerics any` lets"),
        ("int8", "onnx-fp32 left out: numerics 'int8' is what answers; `--numerics full` or `--numerics any` lets"),
    ],
)
def test_what_is_left_out_is_said_with_the_option(rule: NumericsRule, told: str) -> None:
    said = numerics.left_out(bundle(FP32, INT8, FAILED), rule)
    assert said.startswith(told) and bool(said) == bool(told)
    assert "onnx-int8" not in said, "what failed is not left out by a rule"


def test_a_class_without_an_artifact_is_refused_with_what_there_is() -> None:
    told = r"m@1 has no artifact of the numerics class 'int8'; it has onnx-fp32 \(full\): say `--numerics full`, or"
    with pytest.raises(ConfigError, match=told):
        numerics.check(bundle(FP32, FAILED), "int8")
    with pytest.raises(ConfigError, match=r"it has openvino-int8 \(int8\): say `--numerics int8`"):
        numerics.check(bundle(INT8), "full")
    with pytest.raises(ConfigError, match="it has none that is verified: build it again"):
        numerics.check(bundle(FAILED), "any")
    numerics.check(bundle(FP32, INT8), "int8")


def test_what_the_recipe_declares_answers_unless_the_catalog_says_otherwise() -> None:
    declared, silent = bundle(FP32, INT8, numerics="int8"), bundle(FP32, INT8)
    assert (declared.numerics, silent.numerics) == ("int8", "full")
    for named, rule in ((None, "int8"), ("full", "full"), ("any", "any")):
        config = ModelConfig.model_validate({"name": "m", "version": "1", "numerics": named})
        version = ModelVersion(config, declared, declared.request_signature())
        assert version.numerics == rule


def test_a_manifest_that_declares_nonsense_is_refused() -> None:
    with pytest.raises(ManifestInvalid, match="recipe.numerics is 'fp16', not full, int8 or any"):
        Manifest.parse(bundle(FP32, numerics="fp16").model_dump_json(), "here")


def test_each_setting_that_an_engine_is_loaded_for_has_a_key_of_its_own() -> None:
    settings: list[dict[str, Any]] = [
        {},
        *({"numerics": rule} for rule in ("full", "int8", "any")),
        {"max_batch_size": 2},
    ]
    keys = {ModelConfig.model_validate({"name": "m", "version": "1", **each}).key for each in settings}
    assert len(keys) == len(settings)
    assert "m@1" in keys


async def test_a_client_of_the_release_before_is_sent_nothing_that_it_refuses() -> None:
    made = bundle(FP32)
    version = ModelVersion(ModelConfig(name="m", version="1"), made, made.request_signature())
    published = await publish(AppConfig(), lambda: [version], "")
    assert [entry["config"] for entry in published["models"]] == [{"name": "m", "version": "1"}]
    here = RemoteVersions()
    here.receive(published)
    assert here.get("m").key == version.key


@pytest.mark.parametrize(("rows", "verified"), [(9, 8), (64, 8), (2, 1)])
def test_more_rows_in_a_batch_than_were_verified_are_refused_or_left_out(
    tmp_path: Path, rows: int, verified: int
) -> None:
    made = bundle(FP32).model_copy(update={"max_batch": verified})
    folder = tmp_path / "m" / "1"
    folder.mkdir(parents=True)
    (folder / MANIFEST).write_text(made.model_dump_json())
    model = ModelConfig(name="m", version="1", max_batch_size=rows)
    with pytest.raises(ConfigError, match=rf"--max-batch-size {rows}: m@1 was verified with up to {verified} rows"):
        moves.check_settings(str(tmp_path), model)
    moves.check_settings(str(tmp_path), model.model_copy(update={"max_batch_size": verified}))
    # A catalog of before may say more.
    assert made.rows_of_a_call("onnxruntime-cpu", "onnx-fp32", rows) == verified


def test_a_model_that_is_served_keeps_the_settings_that_no_option_names(tmp_path: Path) -> None:
    for version in ("1", "2"):
        put(tmp_path, version, FP32, INT8)
    tuned = ModelConfig(name="m", version="1", numerics="int8", max_batch_size=4, batch_wait_ms=3, resident=True)
    live = Catalog(store=str(tmp_path), models=(tuned,))

    def settings(*options: Any) -> dict[str, Any]:
        (model,) = catalog_of(str(tmp_path), "", *options).models
        assert model.version == "2"
        return model.settings()

    assert settings() == {}
    assert settings("", None, live) == tuned.settings()
    assert settings("", "full", live) == tuned.settings() | {"numerics": "full"}
    assert settings("m", "any") == {"numerics": "any", "resident": True}
    put(tmp_path, "3", FP32)
    with pytest.raises(ConfigError, match="m@3 has no artifact of the numerics class 'int8'"):
        settings("", None, live)


def test_a_version_is_compared_with_the_one_that_is_served_unless_that_is_the_same(tmp_path: Path) -> None:
    put(tmp_path, "1", FP32)
    put(tmp_path, "2", FP32)
    first, second = (ModelConfig(name="m", version=version) for version in ("1", "2"))
    served = Catalog(store=str(tmp_path), models=(first,))
    moves.check_signature(served, str(tmp_path), second)
    moves.check_signature(Catalog(store=str(tmp_path)), str(tmp_path), second)
    signature = bundle(FP32).signature
    renamed = signature.model_copy(update={"inputs": (signature.inputs[0].model_copy(update={"name": "image"}),)})
    changed = bundle(FP32).model_copy(update={"version": "3", "signature": renamed})
    (tmp_path / "m" / "3").mkdir()
    (tmp_path / "m" / "3" / MANIFEST).write_text(changed.model_dump_json())
    third = ModelConfig(name="m", version="3")
    told = "clients of m@1 could not go on with m@3: input 'x' is gone; input image: .* is new; "
    with pytest.raises(ConfigError, match=told + "name m@1 to keep that, .* --force"):
        moves.check_signature(served, str(tmp_path), third)
    # Another command was faster: the change itself compares with what is served by then.
    change = functools.partial(deploy._with_model, third)
    with pytest.raises(ConfigError, match=told):
        change(None, False, served)
    for before, force in ((first, False), (None, True)):
        assert change(before, force, served).models == (third,)
    assert change(None, False, served.with_model(third)).models == (third,)
    # What is served cannot be read any more: nobody can say that it is the same.
    (tmp_path / "m" / "1" / MANIFEST).unlink()
    with pytest.raises(ConfigError, match="m@2 cannot be compared with m@1, which is served: .* --force"):
        moves.check_signature(served, str(tmp_path), second)
    # Other settings of what is served need no store.
    moves.check_signature(served, str(tmp_path), first.model_copy(update={"max_batch_size": 2}))


def test_a_store_that_is_gone_is_an_outage_and_not_an_empty_store(tmp_path: Path) -> None:
    put(tmp_path / "store", "1", FP32)
    (tmp_path / "store").rename(tmp_path / "gone")
    with pytest.raises(StoreUnavailable, match="is not there any more"):
        model_of(str(tmp_path / "store"), "m", ModelConfig(name="m", version="1"))
