"""Which way a job computes: engines of its own where hardware is free, else the running application; and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from enginehouse.cluster.node_facts import NodeFacts
from enginehouse.contract.config import ModelConfig, PoolConfig
from enginehouse.contract.errors import ConfigError
from enginehouse.contract.manifest import Manifest
from enginehouse.faces.scoring.engine_pools import Plan, plan

Via: TypeAlias = Literal["serve", "engines"]


@dataclass(frozen=True, slots=True)
class Way:
    """The way that was taken, and a sentence that says so and why.

    `plan` has the pools of engines; via serve, where it has the application's own nodes, it only predicts.
    """

    via: Via
    sentence: str
    plan: Plan


def choose_way(
    asked: Via | None,
    config: ModelConfig,
    manifest: Manifest,
    nodes: Sequence[NodeFacts],
    pools: Mapping[str, PoolConfig] | None = None,
    is_served: bool = False,
) -> Way:
    """What was `asked` for, else what is free.

    Free are nodes without replicas of the application's pools: engines beside those would take their cores, and online
    requests would wait. They are taken unless the nodes that serve are faster by the latency tables. `is_served` says
    whether the application answers for this very version, `pools` are its pools. Raises ConfigError where a way that is
    asked for, or any, is closed.
    """
    if asked == "serve":
        if not is_served:
            raise ConfigError(
                f"{config.id} is not served here; add it with `enginehouse models add`, or score --via engines"
            )
        serving = plan(config, manifest, [node for node in nodes if node.serves] or nodes, pools)
        return Way("serve", f"via serve, as asked for: through the routers that serve {config.id}", serving)
    if asked == "engines" or not is_served:
        # Beside the application too: nobody else computes this model.
        own = plan(config, manifest, nodes, pools)
        if not own.pools:
            raise ConfigError(f"no engine for {config.id} on this cluster: {_reasons(own)}")
        why = "as asked for" if asked else f"since no application serves {config.id} here"
        return Way("engines", f"via engines, {why}: {described(own)}", own)
    free = plan(config, manifest, [node for node in nodes if not node.serves], pools)
    serving = plan(config, manifest, [node for node in nodes if node.serves], pools)
    if not free.pools:
        beside = "every node that has hardware for it holds replicas of the application (--via engines computes there)"
        return Way("serve", f"via serve: {beside if len(nodes) else 'no node is free'}", serving)
    if _is_faster(serving, free):
        return Way(
            "serve", f"via serve, which is faster: {described(serving)} serve, free would be {described(free)}", serving
        )
    return Way("engines", f"via engines, on nodes that serve nothing: {described(free)}", free)


def described(plan: Plan) -> str:
    """For people: the pools, and what they do together."""
    rate = plan.rows_per_s
    predicted = f", about {rate:,.0f} rows/s by the latency tables" if rate else ""
    return ", ".join(pool.described() for pool in plan.pools) + predicted


def _reasons(plan: Plan) -> str:
    return "; ".join(plan.notes) or "no live node has logical CPUs"


def _is_faster(one: Plan, other: Plan) -> bool:
    if one.rows_per_s is None or other.rows_per_s is None:
        # Never measured, as GPUs where the build had none.
        return one.has_gpu and not other.has_gpu
    return one.rows_per_s > other.rows_per_s
