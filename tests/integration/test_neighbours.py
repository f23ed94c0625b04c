"""Beside other applications, and beside other writers."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Iterator

import httpx
import pytest
import ray
from tests.integration.cluster import wait_for
from tests.integration.conftest import APP, House


@pytest.fixture
def foreign(house: House) -> Iterator[str]:
    """An application of somebody else, deployed from a config by somebody who kept ours; its URL."""
    from ray.serve.context import _get_global_client
    from ray.serve.schema import ServeDeploySchema

    client = _get_global_client()

    def applications() -> dict[str, dict[str, object]]:
        live = ray.get(client._controller.get_app_configs.remote())
        return {name: app.model_dump(exclude_unset=True) for name, app in live.items()}

    theirs = {"name": "foreign", "route_prefix": "/foreign", "import_path": "tests.integration.foreign:app"}
    client.deploy_apps(ServeDeploySchema(applications=[*applications().values(), theirs]), _blocking=False)
    url = f"http://{house.url}/foreign"

    def answers() -> bool:
        try:
            return httpx.get(url, timeout=5).status_code == 200
        except httpx.HTTPError:
            return False

    wait_for(answers, 60, "the foreign application answers")
    yield url
    ours = [app for name, app in applications().items() if name != "foreign"]
    client.deploy_apps(ServeDeploySchema(applications=ours), _blocking=False)


def test_a_foreign_application_survives_our_changes(house: House, foreign: str) -> None:
    from enginehouse.cluster import deploy

    def says(word: str) -> int:
        answer = httpx.get(foreign, params={"say": word}, timeout=5)
        assert answer.status_code == 200, answer.text
        assert answer.json()["said"] == word
        return int(answer.json()["pid"])

    pid = says("before")
    house.publish("guest", "1", 19)
    house.add("guest", "1")
    assert says("after an addition") == pid
    house.remove("guest")
    assert says("after a removal") == pid
    deploy.deploy(APP, house.catalog, "127.0.0.1", house.cluster.http_port)
    assert says("after a deployment") == pid
    house.wait_live("scale", "gpu-pool", "cpu-pool")
    assert set(ray.get(_controller().get_app_configs.remote())) == {"enginehouse", "foreign"}


def _controller() -> ray.actor.ActorHandle:
    from ray.serve.context import _get_global_client

    return _get_global_client()._controller


def test_changes_at_the_same_time_all_land(house: House) -> None:
    from enginehouse.cluster import deploy

    names = ["left", "right"]
    for name in names:
        house.publish(name, "1", 23)
    with concurrent.futures.ThreadPoolExecutor(2) as writers:
        results = list(writers.map(lambda name: house.cluster.cli("models", "add", f"{name}@1"), names))
    try:
        for result in results:
            assert result.returncode == 0, result.stderr
        listed = house.cluster.cli("models", "list").stdout.split()
        assert set(listed) >= {"scale@1", "other@1", "left@1", "right@1"}
        assert {entry["name"] for entry in house.status()["models"]} >= set(names)
    finally:
        with concurrent.futures.ThreadPoolExecutor(2) as writers:
            list(writers.map(deploy.remove_model, names))
    left = {model.name for model in deploy.live_catalog().models}
    assert not left & set(names)
