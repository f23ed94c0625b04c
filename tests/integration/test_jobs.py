"""Handle calls from other Ray jobs: with only Ray and numpy, and with this package."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tests.integration.bundles import WIDTH
from tests.integration.cluster import wait_for
from tests.integration.conftest import House

from enginehouse.contract.config import SERVING_ENV
from enginehouse.contract.errors import DeadlineExceeded, EngineUnavailable, InvalidInput, ModelNotFound

#: A job of somebody who has never heard of this package: importing it fails as where it is not installed.
STRANGER = """
import sys

class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("enginehouse", "enginehouse_build"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NotInstalled())
import asyncio, json, os, time
import numpy as np
import ray
from ray import serve

ray.init(address=os.environ["RAY_ADDRESS"], log_to_driver=False, logging_level="ERROR")
handle = serve.get_app_handle("enginehouse")
x = np.arange(8, dtype=np.float32).reshape(2, 4)
big = np.ones((500_000, 4), np.float32)

def failure(*args, **options):
    began = time.monotonic()
    try:
        handle.infer.remote(*args, **options).result(timeout_s=20)
    except Exception as error:
        kinds = [kind.__name__ for kind in type(error).__mro__]
        cause = getattr(error, "cause", None)
        return {"kinds": kinds, "text": str(error), "cause": type(cause).__name__, "s": time.monotonic() - began}
    return None

async def later():
    answers = await asyncio.gather(*(handle.infer.remote("scale", {"x": x + n}) for n in range(8)))
    return [answer["y"].tolist() for answer in answers]

result = {
    "sync": handle.infer.remote("scale", {"x": x}).result(timeout_s=20)["y"].tolist(),
    "big": float(handle.infer.remote("scale", {"x": big}).result(timeout_s=60)["y"].sum()),
    "bad": failure("scale", {"x": x.astype(np.float64)}),
    "unknown": failure("nowhere", {"x": x}),
    "late": failure("scale", {"x": x}, deadline_s=1e-6),
}
if "async" in sys.argv:
    result["async"] = asyncio.run(later())
print(json.dumps(result))
assert "enginehouse" not in sys.modules
"""
FLAGS = {
    "flags": {"PYTHONPATH": ""},
    "no flags": {},
}


@pytest.mark.parametrize("flags", FLAGS)
def test_a_job_with_only_ray_and_numpy(house: House, tmp_path: Path, flags: str) -> None:
    unset = [] if flags == "flags" else [*(part for name in (*SERVING_ENV, "PYTHONPATH") for part in ("-u", name))]
    done = house.cluster.run("env", *unset, sys.executable, "-c", STRANGER, "async", cwd=tmp_path, env=FLAGS[flags])
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    x = np.arange(2 * WIDTH, dtype=np.float32).reshape(2, WIDTH)
    assert result["sync"] == (x * 2).tolist()
    assert result["async"] == [((x + n) * 2).tolist() for n in range(8)]
    # 8 MB: over the 4 MiB at which gRPC messages stop by default.
    assert result["big"] == 4_000_000
    for name, kind, text in (
        ("bad", "ValueError", "InvalidInput: "),
        ("unknown", "LookupError", "ModelNotFound: "),
        ("late", "TimeoutError", "DeadlineExceeded: "),
    ):
        failure = result[name]
        assert kind in failure["kinds"], failure
        assert text in failure["text"]
        assert failure["s"] < 5
    assert "float64" in result["bad"]["text"] or "FP64" in result["bad"]["text"]
    assert "nowhere" in result["unknown"]["text"]


def test_the_client_raises_our_own_errors(house: House) -> None:
    from enginehouse.faces.python.client import Client

    client = Client()
    x = np.arange(WIDTH, dtype=np.float32).reshape(1, WIDTH)
    np.testing.assert_array_equal(client.infer("scale", {"x": x})["y"], x * 2)
    answer = client.answer("scale", {"x": x}, backend="cpu-pool")
    assert (answer["backend"], answer["version"]) == ("cpu-pool", "1")
    with pytest.raises(InvalidInput, match="'x'"):
        client.infer("scale", {"x": x.astype(np.float64)})
    with pytest.raises(ModelNotFound, match="nowhere"):
        client.infer("nowhere", {"x": x})
    with pytest.raises(ModelNotFound, match="99"):
        client.infer("scale", {"x": x}, version="99")
    with pytest.raises(DeadlineExceeded):
        client.infer("scale", {"x": x}, deadline_s=1e-6)


def test_the_client_routes_in_its_own_process_and_by_the_routers_when_it_cannot(house: House) -> None:
    from enginehouse.faces.python.client import Client

    client = Client()
    x = np.arange(WIDTH, dtype=np.float32).reshape(1, WIDTH)
    embedded = client._router
    assert embedded is not None
    assert Client()._router is embedded

    def own() -> bool:
        return embedded.reaches("scale")

    wait_for(own, 20, "it knows what is served and where")
    deployed, embedded._handle = embedded._handle, None
    took = []
    for _ in range(200):
        began = time.monotonic()
        answer = client.answer("scale", {"x": x}, priority=3, deadline_s=5)
        took.append(time.monotonic() - began)
        np.testing.assert_array_equal(answer["outputs"]["y"], x * 2)
    took_deployed = []
    other = Client(is_embedded=False)
    for _ in range(50):
        began = time.monotonic()
        other.answer("scale", {"x": x})
        took_deployed.append(time.monotonic() - began)
    print(f"p50 {np.median(took) * 1e3:.2f} ms here, {np.median(took_deployed) * 1e3:.2f} ms by the deployed routers")
    with pytest.raises(InvalidInput, match="'x'"):
        client.infer("scale", {"x": x.astype(np.float64)})
    embedded._handle = deployed
    # A new model is known here as soon as the routers have it, and until then by them.
    house.publish("fresh", "1", 11)
    house.add("fresh", "1")
    np.testing.assert_array_equal(client.infer("fresh", {"x": x})["y"], x * 11)
    house.remove("fresh")


def test_where_the_clients_own_router_gets_no_answer_the_deployed_ones_give_it(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    from enginehouse.faces.python.client import Client
    from enginehouse.routing.router import Router
    from enginehouse.routing.versions import ModelVersion

    client, asked = Client(), []
    x = np.arange(WIDTH, dtype=np.float32).reshape(1, WIDTH)
    embedded = client._router
    assert embedded is not None
    wait_for(lambda: embedded.reaches("scale"), 20, "it knows where")
    infer = Router.infer

    async def lost(router: Router, version: ModelVersion, *rest: object) -> object:
        asked.append(version.config.name)
        if len(asked) == 1:
            return await infer(router, version, *rest)  # type: ignore[arg-type]
        raise EngineUnavailable("cpu-pool", "its replica is gone")

    # Of this process: the deployed ones are others.
    monkeypatch.setattr(Router, "infer", lost)
    for _ in range(2):
        np.testing.assert_array_equal(client.infer("scale", {"x": x})["y"], x * 2)
    assert asked == ["scale", "scale"]
    monkeypatch.setattr(Router, "reaches", lambda *_: False)
    np.testing.assert_array_equal(client.infer("scale", {"x": x})["y"], x * 2)
    assert len(asked) == 2


def test_the_client_in_a_job_of_its_own(house: House, tmp_path: Path) -> None:
    script = (
        "import os, numpy as np\n"
        "from enginehouse.cluster import connect\n"
        "from enginehouse.contract.errors import ModelNotFound\n"
        "with connect.connected(os.environ['RAY_ADDRESS']):\n"
        "    from enginehouse.faces.python.client import Client\n"
        "    client = Client()\n"
        "    print(client.infer('other', {'x': np.ones((1, 4), np.float32)})['y'].tolist())\n"
        "    try:\n"
        "        client.infer('nowhere', {'x': np.ones((1, 4), np.float32)})\n"
        "    except ModelNotFound as error:\n"
        "        print(type(error).__name__, error)\n"
    )
    done = house.cluster.run(sys.executable, "-c", script, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[-2] == "[[7.0, 7.0, 7.0, 7.0]]"
    assert lines[-1].startswith("ModelNotFound") and "nowhere" in lines[-1]


#: Goes on calling Ray in a thread when its job has ended, as threads of Serve do.
AFTERWARDS = """
import os, threading, time
import numpy as np, ray
from enginehouse.faces.python.client import Client

ray.init(address=os.environ.pop("RAY_ADDRESS"), log_to_driver=False, logging_level="ERROR")
client = Client()
print(client.infer("scale", {"x": np.ones((1, 4), np.float32)})["y"].tolist())
controller = ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")
ray.shutdown()
said = []

def call():
    for ask in (lambda: ray.put(1), lambda: controller.get_http_config.remote()):
        try:
            ask()
        except Exception as error:
            said.append(type(error).__name__)

threading.Thread(target=call).start()
time.sleep(3)
print(said, ray.is_initialized())
"""


def test_nothing_starts_a_ray_of_its_own_when_a_job_has_ended(house: House, tmp_path: Path) -> None:
    done = house.cluster.run(sys.executable, "-c", AFTERWARDS, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    answer, rest = done.stdout.splitlines()[-2:]
    assert answer == "[[2.0, 2.0, 2.0, 2.0]]"
    assert rest.endswith("] False"), rest
    assert rest.count("'") == 4, rest


#: The README's two calls wherever a job may make them; argv: `handle` or `client`.
PLACES = """
import asyncio, json, os, sys
import numpy as np
import ray

ray.init(address=os.environ["RAY_ADDRESS"], log_to_driver=False, logging_level="ERROR")
x = np.ones((2, 4), np.float32)

if sys.argv[1] == "handle":
    def call():
        from ray import serve
        handle = serve.get_app_handle("enginehouse")
        return float(handle.infer.remote("scale", {"x": x}).result(timeout_s=30)["y"].sum())
    async def call_async():
        from ray import serve
        return float((await serve.get_app_handle("enginehouse").infer.remote("scale", {"x": x}))["y"].sum())
else:
    def call():
        from enginehouse.faces.python.client import Client
        both = [Client(is_embedded).infer("scale", {"x": x})["y"] for is_embedded in (True, False)]
        return float(np.mean(both) * x.size)
    async def call_async():
        from enginehouse.faces.python.client import Client
        both = [await Client(is_embedded).answer_async("scale", {"x": x}) for is_embedded in (True, False)]
        return float(np.mean([answer["outputs"]["y"] for answer in both]) * x.size)

@ray.remote(num_cpus=0.1, max_retries=0)
def task():
    return call()

@ray.remote(num_cpus=0.1, max_retries=0)
def task_with_a_loop():
    return asyncio.run(call_async())

@ray.remote(num_cpus=0.1)
class Sync:
    def go(self):
        return call()

@ray.remote(num_cpus=0.1)
class Async:
    async def go(self):
        return await call_async()

places = {
    "driver": call,
    "driver with a loop": lambda: asyncio.run(call_async()),
    "task": lambda: ray.get(task.remote(), timeout=60),
    "task with a loop": lambda: ray.get(task_with_a_loop.remote(), timeout=60),
    "sync actor": lambda: ray.get(Sync.remote().go.remote(), timeout=60),
    "async actor": lambda: ray.get(Async.remote().go.remote(), timeout=60),
}
result = {}
for place, ask in places.items():
    try:
        result[place] = ask()
    except Exception as error:
        result[place] = f"{type(error).__name__}: {error}"
print(json.dumps(result))
"""


@pytest.mark.parametrize("call", ["handle", "client"])
def test_the_documented_calls_work_wherever_a_job_may_make_them(house: House, tmp_path: Path, call: str) -> None:
    done = house.cluster.run(sys.executable, "-c", PLACES, call, cwd=tmp_path, timeout=240)
    assert done.returncode == 0, done.stderr
    places = json.loads(done.stdout.splitlines()[-1])
    assert len(places) == 6
    assert places == dict.fromkeys(places, 16.0)


async def test_a_client_that_is_not_embedded_asks_the_deployed_routers_from_a_loop_too(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    from enginehouse.faces.python.client import Client
    from enginehouse.routing.router import Router

    x = np.arange(WIDTH, dtype=np.float32).reshape(1, WIDTH)
    embedded, other = Client(), Client(is_embedded=False)
    wait_for(lambda: embedded._router is not None and embedded._router.reaches("scale"), 20, "it knows where")
    here: list[str] = []
    infer = Router.infer

    async def noted(router: Router, *rest: object) -> object:
        here.append("here")
        return await infer(router, *rest)  # type: ignore[arg-type]

    # Of this process: the deployed ones are others.
    monkeypatch.setattr(Router, "infer", noted)
    np.testing.assert_array_equal((await other.answer_async("scale", {"x": x}))["outputs"]["y"], x * 2)
    assert here == []
    np.testing.assert_array_equal((await embedded.answer_async("scale", {"x": x}))["outputs"]["y"], x * 2)
    assert here == ["here"]
