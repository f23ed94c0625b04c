"""Prometheus's text of what was counted: Triton's names and labels, as its dashboards have them, and then ours.

Triton's counters end in no `_total`, which the client library puts there: their heads are set right afterwards.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from enginehouse.counts.rows import BOUNDS_NS, Batches, Key, Loads, Requests, Rows

#: The media type of `text`.
TEXT = "text/plain; version=0.0.4; charset=utf-8"

_MODEL = ("model", "version")
#: Name, place in a row of `requests`, what it is, and how many of the row's units are one of the metric's.
_TRITON = (
    ("request_success", Requests.SUCCESS, "Number of successful inference requests", 1),
    ("count", Requests.ROWS, "Number of inferences performed: rows of successful requests", 1),
    ("request_duration_us", Requests.SUCCESS_NS, "Cumulative inference request duration in microseconds", 1000),
    ("queue_duration_us", Requests.QUEUE_NS, "Cumulative duration of waiting in queues in microseconds", 1000),
    ("compute_input_duration_us", Requests.INPUT_NS, "Cumulative duration of decoding in microseconds", 1000),
    ("compute_infer_duration_us", Requests.INFER_NS, "Cumulative duration of inference in microseconds", 1000),
    ("compute_output_duration_us", Requests.OUTPUT_NS, "Cumulative duration of encoding in microseconds", 1000),
)
_REASONS = (Requests.REJECTED, Requests.CANCELED, Requests.BACKEND, Requests.OTHER)
#: Upper bounds of the rows of an engine call.
_ROWS = tuple(2**power for power in range(11))
_HEAD = re.compile(rb"^# (HELP|TYPE) (nv_inference_\w+)_total ", re.MULTILINE)


def text(rows: Rows, status: Mapping[str, Any]) -> bytes:
    """The whole text; `status` is that of the router that was asked (`LiveVersions.status`)."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collected([*_triton(rows), *_ours(rows), *_seen(status)]))
    return _HEAD.sub(rb"# \1 \2 ", generate_latest(registry))


class _Collected(Collector):
    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = list(metrics)

    def collect(self) -> Iterable[Metric]:
        return self._metrics


def _of(kind: str, rows: Rows) -> list[tuple[Key, Sequence[int]]]:
    return sorted((key[1:], values) for key, values in rows.items() if key[0] == kind)


def _triton(rows: Rows) -> Iterator[Metric]:
    requests, batches = _of("requests", rows), Counter[Key]()
    for (model, version, *_), values in _of("batches", rows):
        batches[model, version] += values[Batches.COUNT]
    for name, place, told, unit in _TRITON:
        yield _plain(f"nv_inference_{name}", told, ((key, values[place] // unit) for key, values in requests))
    failed = Metric("nv_inference_request_failure", "Number of failed inference requests", "counter")
    for key, values in requests:
        for reason in _REASONS:
            failed.add_sample(failed.name, {**_labels(key), "reason": reason.name}, values[reason])
    yield failed
    yield _plain("nv_inference_exec_count", "Number of model executions performed: calls of engines", batches.items())
    pending = GaugeMetricFamily("nv_inference_pending_request_count", "Requests under way", labels=_MODEL)
    for key, values in requests:
        pending.add_metric(key, values[Requests.UNDER_WAY])
    yield pending


def _plain(name: str, told: str, values: Iterable[tuple[Key, int]]) -> Metric:
    metric = Metric(name, told, "counter")
    for key, value in values:
        metric.add_sample(name, _labels(key), value)
    return metric


def _labels(key: Key) -> dict[str, str]:
    return dict(zip(_MODEL, key, strict=True))


def _ours(rows: Rows) -> Iterator[Metric]:
    requests = dict(_of("requests", rows))
    latency = HistogramMetricFamily(
        "enginehouse_request_latency_seconds", "Successful requests, from their body to their answer", labels=_MODEL
    )
    for key, values in _of("latency", rows):
        bounds = [bound / 1e9 for bound in BOUNDS_NS]
        latency.add_metric(key, _buckets(bounds, values), requests[key][Requests.SUCCESS_NS] / 1e9)
    yield latency
    yield from _batches(rows)
    failed = CounterMetricFamily("enginehouse_requests_failed", "By class of error", labels=(*_MODEL, "error"))
    for key, values in _of("refused", rows):
        failed.add_metric(key, values[0])
    yield failed
    failovers = CounterMetricFamily("enginehouse_failovers", "Attempts beyond a request's first", labels=_MODEL)
    for key, values in requests.items():
        failovers.add_metric(key, values[Requests.FAILOVERS])
    yield failovers
    yield from _loads(rows)


def _batches(rows: Rows) -> Iterator[Metric]:
    labels = (*_MODEL, "pool")
    metric = HistogramMetricFamily("enginehouse_batch_rows", "Rows of engine calls", labels=labels)
    seconds = CounterMetricFamily("enginehouse_engine_seconds", "Seconds of engine calls", labels=labels)
    counts: defaultdict[Key, list[int]] = defaultdict(lambda: [0] * (len(_ROWS) + 1))
    total: Counter[Key] = Counter()
    ns: Counter[Key] = Counter()
    for (model, version, pool, size), values in _of("batches", rows):
        key: Key = (model, version, pool)
        place = next((place for place, bound in enumerate(_ROWS) if int(size) <= bound), len(_ROWS))
        counts[key][place] += values[Batches.COUNT]
        total[key] += int(size) * values[Batches.COUNT]
        ns[key] += values[Batches.INFER_NS]
    for key, by_bound in counts.items():
        metric.add_metric(key, _buckets(_ROWS, by_bound), total[key])
        seconds.add_metric(key, ns[key] / 1e9)
    yield metric
    yield seconds


def _buckets(bounds: Sequence[float], counts: Sequence[int]) -> list[tuple[str, float]]:
    """Cumulative, as Prometheus has them."""
    so_far, buckets = 0, []
    for bound, count in zip((*map(float, bounds), float("inf")), counts, strict=True):
        so_far += count
        buckets.append(("+Inf" if bound == float("inf") else f"{bound:g}", float(so_far)))
    return buckets


def _loads(rows: Rows) -> Iterator[Metric]:
    labels = (*_MODEL, "pool")
    loads = CounterMetricFamily("enginehouse_loads", "Models loaded, and that failed to", labels=(*labels, "outcome"))
    seconds = CounterMetricFamily("enginehouse_load_seconds", "Seconds of loading models", labels=labels)
    unloads = CounterMetricFamily("enginehouse_unloads", "Models unloaded", labels=labels)
    for key, values in _of("loads", rows):
        loads.add_metric((*key, "loaded"), values[Loads.LOADED])
        loads.add_metric((*key, "failed"), values[Loads.FAILED])
        seconds.add_metric(key, values[Loads.LOAD_NS] / 1e9)
        unloads.add_metric(key, values[Loads.UNLOADED])
    yield from (loads, seconds, unloads)


def _seen(status: Mapping[str, Any]) -> Iterator[Metric]:
    """Of now, as the router that was asked sees it."""
    states = GaugeMetricFamily("enginehouse_backends", "Backends by state", labels=("model", "pool", "state"))
    ready = GaugeMetricFamily("enginehouse_model_ready", "Whether a request would be answered", labels=("model",))
    for model in status["models"]:
        ready.add_metric((model["name"],), float(model["ready"]))
        for backend in model["backends"]:
            states.add_metric((model["name"], backend["pool"], backend["state"]), 1)
    replicas = GaugeMetricFamily("enginehouse_replicas", "Replicas that are connected to", labels=("pool",))
    nodes = GaugeMetricFamily("enginehouse_nodes", "Live nodes with the hardware of a pool", labels=("pool",))
    for pool in status["pools"]:
        replicas.add_metric((pool["name"],), pool["replicas"])
        nodes.add_metric((pool["name"],), pool["nodes"])
    yield from (states, ready, replicas, nodes)
