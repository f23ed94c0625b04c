"""Which way a job computes: engines of its own where hardware is free, else the running application; and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from enginehouse.cluster import moves
from enginehouse.cluster.node_facts import NodeFacts
from enginehouse.contract.config import ModelConfig, PoolConfig
from enginehouse.contract.errors import ConfigError, NoBackend
from enginehouse.contract.manifest import Manifest
from enginehouse.contract.store import Store
from enginehouse.faces.scoring.ways.engine_pools import Plan, plan

Via: TypeAlias = Literal["serve", "engines"]


@dataclass(frozen=True, slots=True)
class Known:
    """The model of a job: which bundle of which store, and what the running application has to do with it.

    `is_served`: the application answers for this very bundle. `pools` are its pools, None without an application.
    """

    store: str
    config: ModelConfig
    manifest: Manifest
    is_served: bool = False
    pools: Mapping[str, PoolConfig] | None = None


def known(model: str, store: str = "", asked: Via | None = None) -> Known:
    """What `model` (`name`, or `name@version`) means: what the application serves, or the newest version in `store`.

    With a `store` and engines `asked` for, no application is looked for, which takes a second of imports. Raises
    ConfigError for a model that is in neither, and what a store raises.
    """
    name, _, version = model.partition("@")
    catalog, pools = None, None
    if not (store and asked == "engines"):
        # Here, since it imports Serve.
        from enginehouse.cluster import deploy

        try:
            catalog, pools = deploy.live_catalog(), deploy.live_app().pools
        except (ConfigError, NoBackend):
            if not store:
                raise ConfigError(
                    f"no application runs on this cluster that could serve {model!r}; name the store that it is in "
                    "with --store, and engines are started for this job"
                ) from None
    served = catalog.find(name) if catalog else None
    url = Store(store).absolute_url() if store else catalog.store if catalog else ""
    if served is not None and catalog and url == catalog.store and version in ("", served.version):
        config = moves.pinned(url, served)
        manifest = Store(url).manifest(name, config.version, config.digest)
        return Known(url, config, manifest, is_served=True, pools=pools)
    if not store and not version:
        have = ", ".join(each.id for each in catalog.models) if catalog else ""
        raise ConfigError(f"model {name!r} is not served; served: {have or 'none'} (--store scores what is not)")
    place = Store(url)
    versions = place.versions(name)
    if version and version not in versions:
        now = f"; served is {served.id}" if served is not None else ""
        if not versions:
            raise ConfigError(f"{place.url} has no model {name!r}; it has {', '.join(place.models()) or 'nothing'}")
        raise ConfigError(f"{place.url} has no version {version!r} of {name!r}; it has {', '.join(versions)}{now}")
    config = moves.pinned(url, ModelConfig(name=name, version=version or place.latest(name)))
    return Known(url, config, place.manifest(name, config.version, config.digest), pools=pools)


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
