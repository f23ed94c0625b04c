"""What the doctor says about the nodes of a cluster together, from what they say about themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from tests.unit.test_doctor import GPU, HEALTHY

from enginehouse.contract.config import SERVING_ENV, AppConfig, PoolConfig
from enginehouse.tools.doctor import Finding, Member, Survey, judge_cluster, judge_member

IN_MEMORY = {"gcs": [{"pid": 3, "redis": ""}]}
IN_REDIS = {"gcs": [{"pid": 3, "redis": "10.0.0.9"}]}
WITH_GPU = {"gpus": {"devices": [GPU], "reason": ""}, "engines": {"onnxruntime-gpu": "1.31.1"}}
LIMIT = "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH=2147483647"


def member(
    name: str, label: str | None = None, *, head: bool = False, cpus: float = 4, probe: Mapping[str, Any] | None = None
) -> Member:
    return Member(name, head, label, cpus, HEALTHY | (probe or {}))


HEAD = member("head", head=True, cpus=0, probe=IN_REDIS)
CPU = member("one", "cpu")


def faults(*members: Member, pools: Mapping[str, PoolConfig] | None = None, **others: str) -> list[Finding]:
    found = judge_cluster(Survey(members, pools or AppConfig().pools, **others))
    return [finding for finding in found if finding.status != "ok"]


def labels(judged: Member) -> Finding:
    (finding,) = [finding for finding in judge_member(judged) if finding.area == "labels"]
    return finding


def test_a_healthy_cluster_has_no_faults() -> None:
    assert faults(HEAD, CPU, member("two", "gpu", probe=WITH_GPU)) == []
    assert [finding for judged in (HEAD, CPU) for finding in judge_member(judged) if finding.status != "ok"] == []


def test_missing_gpu_nodes_are_told_and_are_no_fault() -> None:
    assert faults(HEAD, CPU) == []
    told = [finding.text for finding in judge_cluster(Survey([HEAD, CPU], AppConfig().pools))]
    assert "tensorrt stays at zero: no node is labelled gpu" in told


def test_missing_cpu_nodes_are_a_warning_for_each_cpu_pool() -> None:
    found = faults(HEAD, member("two", "gpu", probe=WITH_GPU))
    assert [finding.status for finding in found] == ["warn", "warn"]
    assert {finding.text.split()[0] for finding in found} == {"openvino-cpu", "onnxruntime-cpu"}


def test_the_pools_of_the_running_application_count() -> None:
    pools = {"anywhere": PoolConfig(engine="onnxruntime-cpu", nodes=("cpu", "gpu"))}
    assert faults(HEAD, member("two", "gpu", probe=WITH_GPU), pools=pools) == []


def test_no_usable_label_at_all_fails() -> None:
    found = faults(HEAD, member("one"))
    assert [(finding.status, finding.area) for finding in found] == [("fail", "pools")]
    assert "--labels enginehouse.io/accelerator=cpu" in found[0].remedy


@pytest.mark.parametrize("flag", [f"{name}={value}" for name, value in SERVING_ENV.items()])
def test_a_flag_that_only_some_nodes_have_fails(flag: str) -> None:
    lacking = {"flags": [{"pid": 7, "unreadable": "", "missing": [flag]}]}
    (finding,) = faults(HEAD, CPU, member("two", "cpu", probe=lacking))
    assert (finding.status, finding.area) == ("fail", "flags")
    assert flag in finding.text
    assert finding.text.endswith("not on two")


def test_flags_that_no_node_has_are_a_warning_on_each() -> None:
    lacking = {"flags": [{"pid": 7, "unreadable": "", "missing": [LIMIT]}]}
    nodes = [member("head", head=True, cpus=0, probe=IN_REDIS | lacking), member("one", "cpu", probe=lacking)]
    assert faults(*nodes) == []
    assert {finding.status for node in nodes for finding in judge_member(node)} == {"ok", "warn"}


def test_a_head_without_redis_is_a_warning_where_others_depend_on_it() -> None:
    head = member("head", head=True, cpus=0, probe=IN_MEMORY)
    (finding,) = faults(head, CPU)
    assert (finding.status, finding.area) == ("warn", "head")
    assert "RAY_REDIS_ADDRESS" in finding.remedy
    assert faults(member("only", "cpu", head=True, probe=IN_MEMORY)) == []


def test_different_versions_are_told_with_their_nodes() -> None:
    other = member("two", "cpu", probe={"versions": HEALTHY["versions"] | {"enginehouse": "0.2.0"}})
    (finding,) = faults(HEAD, CPU, other)
    assert finding.text == "enginehouse differs: 0.1.0 on head, one; 0.2.0 on two"


def test_a_node_that_does_not_answer_fails() -> None:
    silent = Member("two", False, "cpu", 4, None, "it did not answer within 10 s")
    (finding,) = judge_member(silent)
    assert (finding.status, finding.text) == ("fail", "it did not answer within 10 s")
    assert faults(HEAD, CPU, silent) == []
    assert judge_cluster(Survey([HEAD, CPU, silent], AppConfig().pools))[0].text == "3 live, 1 did not answer"


def test_a_controller_that_does_not_answer_fails() -> None:
    (finding,) = faults(HEAD, CPU, serve_problem="Serve's controller did not answer")
    assert (finding.status, finding.area) == ("fail", "serve")


@pytest.mark.parametrize(
    ("judged", "status", "told"),
    [
        (member("one", "gpu"), "fail", "there is no GPU: no NVIDIA driver"),
        (member("one", "cpu", probe=WITH_GPU), "warn", "a GPU that no pool will use"),
        (member("one", "tpu"), "warn", "no pool knows this value"),
        (member("one"), "warn", "no pool is placed here"),
        (member("one", cpus=0), "ok", "no replica is placed here"),
    ],
)
def test_a_label_is_compared_with_the_hardware(judged: Member, status: str, told: str) -> None:
    finding = labels(judged)
    assert finding.status == status
    assert told in finding.text
    assert bool(finding.remedy) == (status != "ok")


def test_a_head_needs_no_engines_and_a_labelled_node_does() -> None:
    none = {"engines": {}}
    assert {finding.status for finding in judge_member(member("head", cpus=0, probe=none))} == {"ok"}
    assert "fail" in {finding.status for finding in judge_member(member("one", "cpu", probe=none))}


def test_a_server_that_anybody_asks_from_elsewhere_is_a_warning() -> None:
    (finding,) = faults(HEAD, CPU, reached_at="0.0.0.0:8000")
    assert (finding.status, finding.area) == ("warn", "callers")
    assert "0.0.0.0:8000" in finding.text and "--tokens" in finding.remedy
