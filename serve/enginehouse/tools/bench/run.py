"""The whole run: engines beside the server, their limit, the scenarios, the limit again."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from enginehouse.contract.bundle import Bundle
from enginehouse.contract.errors import InvalidInput, NoBackend
from enginehouse.contract.parity import limits_of
from enginehouse.tools.bench import answers, scenarios
from enginehouse.tools.bench.figure import Figure
from enginehouse.tools.bench.limit import Engines, Limit, Order
from enginehouse.tools.bench.live import Target, TargetBackend
from enginehouse.tools.bench.report import Context
from enginehouse.tools.bench.samples import Samples
from enginehouse.tools.bench.scenarios import Plan
from enginehouse.tools.bench.subject import Subject, ask

Tell = Callable[[str], None]


def run(
    url: str, target: Target, bundle: Bundle, samples: Samples, plan: Plan, *, as_json: bool = False, tell: Tell
) -> tuple[list[Figure], Context]:
    """Measure `target` at `url` (of its `infer` endpoint) by `plan`, and its engines in processes of their own.

    Raises ParityFailed for a wrong answer, InvalidInput for requests that the server refuses, and NoBackend.
    """
    if plan.rows > 1 and not samples.batched:
        raise InvalidInput(f"{target.model!r} takes one row at a time; --rows is {plan.rows}")
    body, headers = answers.encode(samples.request(0, plan.rows), as_json)
    main = _backend(target, answers.backend_of(ask(url, body, headers)[1]))
    with ExitStack() as stack:
        engines: dict[str, Engines] = {}
        for backend in target.backends.values():
            count = backend.engines if backend == main else 1
            tell(f"loading {backend.artifact} here to compare with: {count} x {backend.threads} threads")
            order = Order(bundle.path, backend.kind, backend.artifact, backend.threads)
            engines[backend.name] = stack.enter_context(Engines(order, count))
        precisions = {
            name: bundle.manifest.artifact(known.artifact).precision for name, known in target.backends.items()
        }
        subject = Subject(
            url=url,
            samples=samples,
            max_rows=bundle.manifest.max_batch if samples.batched else 1,
            processes=target.processes,
            engines=engines,
            limits={name: limits_of(precision) for name, precision in precisions.items()},
            as_json=as_json,
        )
        before = _limit(subject, engines[main.name], sorted({1, subject.max_rows}), plan.seconds / 2, tell)
        figures = list(scenarios.run(subject, plan, tell))
        after = _limit(subject, engines[main.name], [before.rows], plan.seconds / 2, tell)
    if len(subject.seen) > 1:
        tell(f"answers came from {' and '.join(sorted(subject.seen))}; the limit is that of {main.name}")
    context = Context(
        model=target.model,
        version=target.version,
        backend=", ".join(sorted(subject.seen)),
        precision=engines[main.name].precision,
        body_bytes=len(body),
        samples=samples.name,
        limit=before.and_again(after),
    )
    return figures, context


def _backend(target: Target, name: str) -> TargetBackend:
    if name not in target.backends:
        known = ", ".join(target.backends)
        raise NoBackend(f"the answer came from {name or 'a server that does not say'}; the cluster has {known}")
    return target.backends[name]


def _limit(subject: Subject, engines: Engines, rows: list[int], seconds: float, tell: Tell) -> Limit:
    found = [engines.limit(subject.request(count), count, seconds) for count in rows]
    best = max(found, key=lambda limit: limit.rows_per_s)
    tell(f"in-process limit: {best.rows_per_s:,.1f} rows/s with calls of {best.rows} rows")
    return best
