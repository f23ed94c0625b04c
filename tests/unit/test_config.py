"""A configuration is checked before anything starts, and a mistake is told by field and value."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray import serve
from ray.serve.schema import ServeDeploySchema

from enginehouse import app
from enginehouse.contract.config import (
    APP_NAME,
    ROUTER,
    SERVING_ENV,
    AppConfig,
    Catalog,
    ModelConfig,
    PoolConfig,
    RouterConfig,
    serve_config,
)
from enginehouse.contract.errors import ConfigError
from enginehouse.contract.manifest import ACCELERATOR_OF, ENGINE_KINDS, EngineKind

EXAMPLE = Path(__file__).parents[2] / "serve" / "app.yaml"
DIGITS = ModelConfig(name="digits", version="1")
CATALOG = Catalog(store="/data/models", models=(DIGITS,))


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"pool": {}}, ["args.pool", "Extra inputs", "{}"]),
        ({"pools": {}}, ["at least one pool"]),
        ({"pools": {ROUTER: {"engine": "tensorrt"}}}, ["'Router' is the router's own name"]),
        ({"pools": {"a": {"engine": "onnx"}}}, ["args.pools.a.engine", "'onnx'", "onnxruntime-cpu"]),
        ({"pools": {"a": {}}}, ["args.pools.a.engine", "required"]),
        ({"pools": {"a": {"engine": "tensorrt", "nodes": ["tpu"]}}}, ["args.pools.a.nodes.0", "'tpu'"]),
        ({"pools": {"a": {"engine": "tensorrt", "threads": 0}}}, ["args.pools.a.threads", "given: 0"]),
        (
            {"pools": {"a": {"engine": "tensorrt", "min_replicas": 3, "max_replicas": 2}}},
            ["args.pools.a", "min_replicas 3 is above max_replicas 2"],
        ),
        ({"router": {"default_deadline_s": -1}}, ["args.router.default_deadline_s", "given: -1"]),
        ([], ["args", "[]"]),
    ],
)
def test_a_mistake_in_args_names_field_and_value(values: Any, told: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        AppConfig.parse(values)
    assert all(part in str(caught.value) for part in told), caught.value


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (None, ["user_config"]),
        ({}, ["user_config.store", "required"]),
        ({"store": "s", "models": [{"name": "a"}]}, ["user_config.models.0.version", "required"]),
        ({"store": "s", "models": [{"name": "a", "version": 1}]}, ["user_config.models.0.version", "given: 1"]),
        (
            {"store": "s", "models": [{"name": "a", "version": "1", "numerics": "fp16"}]},
            ["user_config.models.0.numerics", "'fp16'"],
        ),
        (
            {"store": "s", "models": [{"name": "a", "version": "1"}, {"name": "a", "version": "2"}]},
            ["'a' is listed twice"],
        ),
    ],
)
def test_a_mistake_in_user_config_names_field_and_value(values: Any, told: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        Catalog.parse(values)
    assert all(part in str(caught.value) for part in told), caught.value


@pytest.mark.parametrize("kind", ENGINE_KINDS)
def test_a_pool_runs_by_default_where_its_engine_can(kind: EngineKind) -> None:
    pool = PoolConfig(engine=kind)
    accelerator = ACCELERATOR_OF[kind]
    assert pool.nodes == (accelerator,)
    # Two GPU pools fit on one GPU, and CPU pools leave it alone.
    assert pool.num_gpus == (0.5 if accelerator == "gpu" else 0)
    assert AppConfig().pools[kind] == pool


def test_what_a_pool_is_given_wins_over_the_defaults_of_its_engine() -> None:
    pool = PoolConfig(engine="tensorrt", num_gpus=1, nodes=("cpu", "gpu"))
    assert (pool.num_gpus, pool.nodes) == (1, ("cpu", "gpu"))


def test_default_pools_and_router_fit_on_two_logical_cpus_with_room_for_scoring() -> None:
    config = AppConfig()
    cpu_pools = [pool for pool in config.pools.values() if "cpu" in pool.nodes]
    placed = sum(pool.num_cpus * pool.max_replicas for pool in cpu_pools)
    placed += config.router.num_cpus * config.router.num_replicas
    # One scoring actor, one task that reads and one that writes, of 0.25 CPU each.
    assert 2 - placed >= 0.75


def test_a_catalog_gains_replaces_and_loses_models() -> None:
    second = DIGITS.model_copy(update={"version": "2"})
    other = ModelConfig(name="other", version="7")
    grown = CATALOG.with_model(other)
    assert [model.id for model in grown.models] == ["digits@1", "other@7"]
    assert [model.id for model in grown.with_model(second).models] == ["other@7", "digits@2"]
    assert grown.find("other") == other
    assert grown.without("digits").models == (other,)
    assert grown.without("nobody") == grown
    assert grown.find("nobody") is None
    assert CATALOG.models == (DIGITS,)
    assert grown.with_model(second).store == CATALOG.store


@pytest.mark.parametrize(
    "config",
    [
        AppConfig(),
        AppConfig(pools={"my-pool": PoolConfig(engine="openvino-cpu", models=("digits",))}),
        AppConfig(pools={"shared": PoolConfig(engine="tensorrt", num_gpus=0), "own": PoolConfig(engine="tensorrt")}),
        AppConfig(router=RouterConfig(num_replicas=3)),
    ],
)
def test_the_serve_config_is_rays_and_brings_the_same_configuration_back(config: AppConfig) -> None:
    document = serve_config(config, CATALOG, "0.0.0.0", 8123)
    ServeDeploySchema.model_validate(document)
    # It is written to a file and read by Ray: nothing but plain data may be in it.
    assert yaml.safe_load(yaml.safe_dump(document)) == document
    (application,) = document["applications"]
    assert AppConfig.parse(application["args"]) == config
    assert [Catalog.parse(deployment["user_config"]) for deployment in application["deployments"]] == [CATALOG] * (
        1 + len(config.pools)
    )


@pytest.mark.parametrize("config", [AppConfig(), AppConfig(pools={"a-b": PoolConfig(engine="tensorrt")})])
def test_the_deployments_of_the_serve_config_are_those_that_the_application_has(config: AppConfig) -> None:
    (application,) = serve_config(config, CATALOG)["applications"]
    built = app.build(application["args"])
    assert isinstance(built, serve.Application)
    bound = [built, *built._bound_deployment.init_kwargs.values()]
    assert [part._bound_deployment.name for part in bound] == [entry["name"] for entry in application["deployments"]]


def test_the_application_refuses_args_that_cannot_work() -> None:
    with pytest.raises(ConfigError, match="args.pools.a.engine"):
        app.build({"pools": {"a": {"engine": "caffe"}}})


def test_serving_flags_are_known_to_this_ray_and_take_effect() -> None:
    code = (
        "import json, sys; from ray.serve._private import constants;"
        "print(json.dumps({name: getattr(constants, name) for name in sys.argv[1:]}))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, *SERVING_ENV],
        env=os.environ | SERVING_ENV,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    found = {
        name: value if isinstance(value, str) else str(int(value)) for name, value in json.loads(ran.stdout).items()
    }
    assert found == SERVING_ENV


def test_the_example_file_is_what_we_would_write() -> None:
    document = yaml.safe_load(EXAMPLE.read_text())
    ServeDeploySchema.model_validate(document)
    (application,) = document["applications"]
    assert application["name"] == APP_NAME
    config = AppConfig.parse(application["args"])
    catalogs = {Catalog.parse(deployment["user_config"]) for deployment in application["deployments"]}
    assert len(catalogs) == 1
    assert document == serve_config(config, catalogs.pop(), **document["http_options"])
    assert config.pools.keys() == AppConfig().pools.keys()
