"""Which engines of its own a scoring job has: one pool of scorers for each kind of hardware, planned from plain facts.

1. Nodes of the same label, cores and libraries are one kind of hardware. One without a label counts as what it has.
2. Each kind gets the engine and artifact that the pools of serving for its label would load, by the same rule
   (`contract.choice`). Where those have nothing in the bundle, a node computes on its CPU.
3. A CPU is divided among scorers of about as many threads as the latency table was measured with: with more than
   `MOST_THREADS`, a process that reads, casts and writes as well does not keep its engine busy. A GPU has one scorer.
4. Logical CPUs are for placement. Scorers take as many as they have threads, from what is left; beside replicas of the
   application, which hold CPUs whether they compute or not, no more than such a replica.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from enginehouse.cluster.node_facts import NodeFacts
from enginehouse.contract.choice import choose_artifact
from enginehouse.contract.config import ACCELERATOR_LABEL, AppConfig, ModelConfig, PoolConfig
from enginehouse.contract.manifest import ACCELERATOR_OF, Accelerator, Artifact, EngineKind, Manifest, NumericsRule
from enginehouse.contract.numerics import rule_of, why_nothing

#: Threads of a scorer, unless the pool's configuration says otherwise or there is no room for another scorer. Fewer
#: would only be more processes: an engine splits its cores among several calls by itself where that pays.
LEAST_THREADS, MOST_THREADS = 4, 8
#: Memory of a scorer: its process, and what an engine takes beside the files that it was made of, times their bytes.
PROCESS_BYTES, ENGINE_TIMES = 400 << 20, 3
#: The label that Ray gives each node.
_NODE_LABEL = "ray.io/node-id"

Choice = tuple[EngineKind, Artifact]


@dataclass(frozen=True, slots=True)
class EnginePool:
    """Scorers of one kind of hardware, `per_node` on each of `nodes` at most.

    The first of `kinds` computes; the others are for rows whose values its artifact is not right for. `rows_per_s` is
    what one scorer does by the latency table, None where there is none; `price` what a second of it costs.
    """

    name: str
    accelerator: Accelerator
    kinds: tuple[EngineKind, ...]
    artifact: str
    nodes: tuple[str, ...]
    per_node: int
    threads: int
    batch_rows: int
    rows_per_s: float | None
    num_cpus: float
    num_gpus: float
    selector: Mapping[str, str]
    price: float = 1.0

    @property
    def most(self) -> int:
        """How many scorers its nodes have room for."""
        return len(self.nodes) * self.per_node

    def actor_options(self) -> dict[str, Any]:
        """Options of the Ray actor of a scorer."""
        options: dict[str, Any] = {"num_cpus": self.num_cpus, "label_selector": dict(self.selector)}
        if self.num_gpus:
            options["num_gpus"] = self.num_gpus
        if len(self.nodes) > 1:
            options["scheduling_strategy"] = "SPREAD"
        return options

    def described(self) -> str:
        """For people: what computes where."""
        threads = f" of {_counted(self.threads, 'thread')}" if ACCELERATOR_OF[self.kinds[0]] == "cpu" else ""
        return (
            f"{self.kinds[0]} with {self.artifact} ({_counted(self.most, 'scorer')}{threads} on "
            f"{_counted(len(self.nodes), f'{self.accelerator} node')}, {_counted(self.batch_rows, 'row')} a call)"
        )


@dataclass(frozen=True, slots=True)
class Plan:
    """The pools of a job, and a sentence for each kind of hardware that has none."""

    pools: tuple[EnginePool, ...]
    notes: tuple[str, ...] = ()

    @property
    def rows_per_s(self) -> float | None:
        """What all scorers together do by the latency tables, None where one of them was never measured."""
        rates = [pool.rows_per_s for pool in self.pools]
        if not rates or None in rates:
            return None
        return sum(rate * pool.most for rate, pool in zip(rates, self.pools, strict=True) if rate is not None)

    @property
    def has_gpu(self) -> bool:
        """Whether a GPU computes."""
        return any(ACCELERATOR_OF[pool.kinds[0]] == "gpu" for pool in self.pools)


def plan(
    config: ModelConfig,
    manifest: Manifest,
    nodes: Sequence[NodeFacts],
    pools: Mapping[str, PoolConfig] | None = None,
) -> Plan:
    """The pools for a model on these nodes; `pools` are those of the application, by default the default ones."""
    known = AppConfig().pools if pools is None else pools
    known = {name: pool for name, pool in known.items() if pool.models is None or config.name in pool.models}
    found: list[EnginePool] = []
    notes: list[str] = []
    for group in _groups(nodes):
        try:
            found.append(_pool(config, manifest, group, known, _selector(group, nodes)))
        except _NothingHereError as reason:
            notes.append(f"{_where(group)}: {reason}")
    return Plan(_named(found), tuple(notes))


class _NothingHereError(Exception):
    """Why a kind of hardware has no pool."""


def _pool(
    config: ModelConfig,
    manifest: Manifest,
    group: Sequence[NodeFacts],
    pools: Mapping[str, PoolConfig],
    selector: Mapping[str, str],
) -> EnginePool:
    label, own = _accelerator(group[0]), group[0].own
    manifest, numerics = manifest.timed_for(own.int8_products), rule_of(config, manifest)
    installed = {name: pool for name, pool in pools.items() if pool.engine in own.engines}
    here = {name: pool for name, pool in installed.items() if label in pool.nodes}
    on_cpu = {name: pool for name, pool in installed.items() if ACCELERATOR_OF[pool.engine] == "cpu"}
    ranked = _ranked(manifest, here, numerics)
    if not ranked and (ranked := _ranked(manifest, on_cpu, numerics)):
        # As in a local cluster: what the label is for is not in the bundle, but the node has a CPU.
        here = {name: pool.model_copy(update={"num_gpus": 0.0}) for name, pool in on_cpu.items()}
    if not ranked:
        raise _NothingHereError(_why_nothing(manifest, pools, label, own.engines, numerics))
    kind, artifact = ranked[0]
    name, pool = next((name, pool) for name, pool in here.items() if pool.engine == kind)
    per_node, threads, num_gpus = _division(manifest, group, pool, kind, artifact)
    table = manifest.latency_of(kind, artifact.name)
    rows = config.max_batch_size or manifest.efficient_rows(kind, artifact.name)
    rate = table.rows_per_s(rows, manifest.axes[0].opt if manifest.axes else None) if table else None
    if table and rate and ACCELERATOR_OF[kind] == "cpu":
        rate *= threads / table.threads
    others = [other for other, _ in _ranked(manifest, here | on_cpu, numerics) if other != kind]
    return EnginePool(
        name=name,
        accelerator=label,
        kinds=(kind, *others),
        artifact=artifact.name,
        nodes=tuple(node.id for node in group),
        per_node=per_node,
        threads=threads,
        batch_rows=rows if manifest.signature.batched else 1,
        rows_per_s=rate,
        num_cpus=_num_cpus(group, pool, per_node, threads),
        num_gpus=num_gpus,
        selector=selector,
        price=pool.price,
    )


def _ranked(manifest: Manifest, pools: Mapping[str, PoolConfig], numerics: NumericsRule) -> list[Choice]:
    """What the engines of `pools` would load, the preferred one first."""
    left = list(dict.fromkeys(pool.engine for pool in pools.values()))
    found: list[Choice] = []
    while left and (choice := choose_artifact(manifest, left, numerics)):
        found.append(choice)
        left.remove(choice[0])
    return found


def _division(
    manifest: Manifest, group: Sequence[NodeFacts], pool: PoolConfig, kind: EngineKind, artifact: Artifact
) -> tuple[int, int, float]:
    """Scorers of a node, threads of each, and its share of a GPU."""
    cores, memory = free_cores(group[0]), min(node.own.memory_bytes for node in group)
    size = sum(file.bytes for file in artifact.files)
    count = max(1, memory // (PROCESS_BYTES + ENGINE_TIMES * size))
    num_gpus = 0.0
    if pool.num_gpus:
        free = group[0].free_gpus
        if free <= 0:
            raise _NothingHereError("others hold its GPUs; pools that serve hold theirs until they are stopped")
        num_gpus = min(1.0, free)
        count = min(count, max(1, math.floor(free)))
    if ACCELERATOR_OF[kind] == "cpu":
        table = manifest.latency_of(kind, artifact.name)
        usual = min(max(table.threads if table else MOST_THREADS, LEAST_THREADS), MOST_THREADS)
        count = min(count, max(1, cores // (pool.threads or usual)))
    return count, pool.threads or max(1, cores // count), num_gpus


def free_cores(node: NodeFacts) -> int:
    """Physical cores that no other job has: what is left of the logical CPUs, as a share, at least one.

    Those that the application's replicas hold say nothing of cores: a replica computes when it is asked.
    """
    if node.serves:
        return node.own.cores
    return max(1, min(node.own.cores, round(node.own.cores * node.free_cpus / node.cpus)))


def _num_cpus(group: Sequence[NodeFacts], pool: PoolConfig, count: int, threads: int) -> float:
    """Logical CPUs of a scorer, so that `count` of them fit on each node of the group."""
    wanted = min(
        min(pool.num_cpus, node.free_cpus / 2 / count)
        if node.serves
        else min(threads * node.cpus / node.own.cores, node.free_cpus / count)
        for node in group
    )
    return max(0, math.floor(wanted * 100)) / 100


def _groups(nodes: Iterable[NodeFacts]) -> list[list[NodeFacts]]:
    """Nodes by kind of hardware, GPUs first."""
    groups: dict[Any, list[NodeFacts]] = {}
    for node in nodes:
        gpus = math.floor(node.free_gpus) or node.free_gpus
        key = (_accelerator(node), free_cores(node), gpus, node.own.engines, node.own.int8_products)
        groups.setdefault(key, []).append(node)
    return sorted(groups.values(), key=lambda group: (_accelerator(group[0]) != "gpu", -free_cores(group[0])))


def _accelerator(node: NodeFacts) -> Accelerator:
    if node.accelerator in ("cpu", "gpu"):
        label: Accelerator = "gpu" if node.accelerator == "gpu" else "cpu"
        return label
    return "gpu" if node.gpus else "cpu"


def _selector(group: Sequence[NodeFacts], nodes: Sequence[NodeFacts]) -> dict[str, str]:
    """Where its scorers may be: by the label, so that nodes that join later count, if it says exactly these nodes."""
    label = group[0].accelerator
    if label and sum(node.accelerator == label for node in nodes) == len(group) and not any(n.serves for n in group):
        return {ACCELERATOR_LABEL: label}
    ids = [node.id for node in group]
    return {_NODE_LABEL: ids[0] if len(ids) == 1 else f"in({','.join(ids)})"}


def _why_nothing(
    manifest: Manifest,
    pools: Mapping[str, PoolConfig],
    label: Accelerator,
    installed: Iterable[EngineKind],
    numerics: NumericsRule,
) -> str:
    kinds = dict.fromkeys(p.engine for p in pools.values() if label in p.nodes or ACCELERATOR_OF[p.engine] == "cpu")
    if not kinds:
        return "no pool is for it"
    reasons = [
        f"{kind}: {why_nothing(manifest, kind, numerics) if kind in installed else 'its library is not installed'}"
        for kind in kinds
    ]
    return f"nothing of {manifest.name}@{manifest.version} for it ({'; '.join(reasons)})"


def _where(group: Sequence[NodeFacts]) -> str:
    return f"{_accelerator(group[0])} node{'s' if len(group) > 1 else ''} {', '.join(node.address for node in group)}"


def _named(pools: Sequence[EnginePool]) -> tuple[EnginePool, ...]:
    """With a name of its own for each: two kinds of nodes may have one engine."""
    names = [pool.name for pool in pools]
    seen: dict[str, int] = {}
    found = []
    for pool in pools:
        seen[pool.name] = number = seen.get(pool.name, 0) + 1
        found.append(replace(pool, name=f"{pool.name}-{number}") if names.count(pool.name) > 1 else pool)
    return tuple(found)


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" + ("s" if number != 1 else "")
