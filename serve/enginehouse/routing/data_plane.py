"""The data plane: every request, from any face, goes through it and becomes an answer with its origin.

    caller = plane.callers.find(authorization)                     who asks
    with plane.open(caller, "http", model, version, priority) as turn:     may it; is there such a model; admission
        turn.take(len(body))                                       bytes count while the turn lasts
        request = decode(body, turn.signature)
        answer = await turn.infer(request.inputs, request.rows, hints)

A face decodes, asks and encodes, and holds nothing of its own: whatever must hold for every request is decided in
`Turn.__enter__`, before the body is read, and recorded by the turn.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from enginehouse.contract.config import USUAL
from enginehouse.contract.errors import ModelNotFound, NoBackend
from enginehouse.contract.signature_record import check_extents
from enginehouse.contract.tensors import Signature, Tensors, checked_arrays, checked_name, nbytes
from enginehouse.counts import ledger
from enginehouse.counts.ledger import Ledger
from enginehouse.counts.requests import Counted, RequestCounts
from enginehouse.routing.admission import Admission, Admitted
from enginehouse.routing.admission.callers import ANYBODY, Caller, Callers
from enginehouse.routing.answer import Answer, Explained
from enginehouse.routing.counting.telemetry import RequestMetrics
from enginehouse.routing.hints import Hints
from enginehouse.routing.router import Router
from enginehouse.routing.versions import Versions
from enginehouse.routing.view import ModelVersion


class DataPlane:
    """The one way from any face to an answer; one per process, with the admission and the statistics of that process.

    `versions` says which version answers for a name, `callers` who may ask over HTTP and gRPC. Requests are counted in
    `counts`, by default the process's ledger.
    """

    def __init__(
        self,
        router: Router,
        versions: Versions,
        max_requests: int,
        max_bytes: int,
        callers: Callers | None = None,
        counts: Ledger | None = None,
    ) -> None:
        self.router = router
        self.versions = versions
        self.callers = callers or Callers()
        self.admission = Admission(max_requests, max_bytes)
        self.metrics = RequestMetrics()
        self.counted = Counted(counts or ledger.here())
        #: Errors with which a request goes on to another router, which counts it then.
        self.hands_over: frozenset[type[BaseException]] = frozenset()
        #: Whether the server is ending: not ready, but it answers as ever until it `refuses` new requests.
        self.is_ending = False
        self.refuses = False

    def drain(self, refuse: bool) -> int:
        """Be ready for nothing from now on and, with `refuse`, refuse new requests; how many are under way."""
        self.is_ending = True
        self.refuses = self.refuses or refuse
        return self.admission.requests + self.admission.last.requests

    def open(self, caller: Caller, face: str, model: str, version: str | None = None, priority: int = USUAL) -> Turn:
        """A turn for one request, before its body is read; a context manager, which begins when it is entered.

        `face` is the way in: http, grpc, handle or python. Entering raises PermissionDenied, ModelNotFound, Overloaded.
        """
        return Turn(self, caller, face, model, version, priority)

    @contextmanager
    def refusals(self, face: str, model: str = "", version: str | None = None) -> Iterator[None]:
        """Count a request that is refused in the context, before it can have a turn: for its hints."""
        try:
            yield
        except Exception as error:
            outcome = self.metrics.outcome_of(type(error))
            self.metrics.record(face, "", "", "", outcome, 0.0)
            name, number = self.named(model, version)
            if name:
                self.counted.of(name, number).failed(type(error), outcome, 0)
            raise

    def named(self, model: str, version: str | None) -> tuple[str, str]:
        """The model and version of the catalog that is asked for; empty where there is none."""
        try:
            config = self.versions.get(model, version).config
            return config.name, config.version
        except NoBackend:
            return model, version or self.versions.wanted(model)
        except (ModelNotFound, TypeError):
            # TypeError: a name that is no text, and not even hashable.
            return "", ""

    async def infer(self, face: str, model: str, inputs: Tensors, hints: Hints, version: str | None = None) -> Answer:
        """A whole turn, from inside of the cluster, for inputs that are decoded already. Raises EnginehouseError."""
        with self.refusals(face, model, version):
            checked_name(model)
        with self.open(ANYBODY, face, model, version, hints.priority) as turn:
            turn.take(nbytes(checked_arrays(inputs)))
            return await turn.infer(inputs, turn.signature.check(inputs), hints)

    def is_ready(self, model: str, version: str | None = None) -> bool:
        """Whether a request for `model` would be answered now. Raises ModelNotFound."""
        try:
            return self.answers(self.versions.get(model, version))
        except NoBackend:
            return False

    def answers(self, version: ModelVersion) -> bool:
        """Whether a request for `version` would be answered now, and by a server that stays."""
        return not self.is_ending and self.router.is_ready(version)

    def explain(self, model: str, rows: int, size: int | None, hints: Hints, version: str | None = None) -> Explained:
        """How a request of `rows` rows and `size` would be routed now.

        Raises RequestError, also where such a request would be refused for its shape, or CapacityError.
        """
        found = self.versions.get(checked_name(model), version)
        rows, size = check_extents(found.config.id, found.signature, found.manifest.axes, rows, size)
        return self.router.explain(found, rows, size, hints)


class Turn:
    """One request, from before its body is read to the end of its `with plane.open(...) as turn`."""

    __slots__ = (
        "_admitted",
        "_answer",
        "_answered_at",
        "_asked",
        "_began",
        "_body_at",
        "_caller",
        "_counts",
        "_face",
        "_is_settled",
        "_name",
        "_plane",
        "_priority",
        "_rows",
        "_version",
    )

    def __init__(
        self, plane: DataPlane, caller: Caller, face: str, model: str, version: str | None, priority: int
    ) -> None:
        self._plane = plane
        self._caller = caller
        self._face = face
        self._asked = model, version
        self._priority = priority
        self._admitted: Admitted
        self._version: ModelVersion | None = None
        # What the request counts under: only what is in the catalog, for clients may invent names without end.
        self._name = "", ""
        self._is_settled = False
        self._answer: Answer | None = None
        self._counts: RequestCounts | None = None
        self._rows = 0
        # In nanoseconds: when it came or, later, was handed to the router; when its body was there; and its answer.
        self._began = self._body_at = self._answered_at = time.monotonic_ns()

    def __enter__(self) -> Turn:
        try:
            # Before anything is revealed, counted or read.
            if self._caller is not ANYBODY:
                self._caller.check("infer", self._asked[0])
                self._caller.begin()
            if self._plane.refuses:
                self._name = self._plane.named(*self._asked)
                raise NoBackend("this server is ending; send the request again, to another one or when it is back")
            try:
                self._version = self._plane.versions.get(*self._asked)
                key = self._version.key
            except NoBackend:
                # One that is not warm yet may be when the body is there.
                key = self._asked[0]
                self._name = self._asked[0], self._asked[1] or ""
            self._admitted = Admitted(self._plane.admission, key, self._priority)
            self._admitted.__enter__()
        except Exception as error:
            self._record(type(error))
            raise
        if (version := self._version) is not None:
            self._counts = self._plane.counted.of(version.config.name, version.config.version)
            self._counts.begun()
        return self

    def take(self, size: int) -> None:
        """Count `size` more bytes until the turn ends. Raises Overloaded."""
        self._admitted.take(size)

    @property
    def signature(self) -> Signature:
        """Signature of the version that answers. Raises ModelNotFound or NoBackend.

        Read it first when the body has arrived: that settles the version, which may have been switched meanwhile.
        """
        if not self._is_settled:
            self._body_at = self._began = time.monotonic_ns()
            self._version = self._plane.versions.get(*self._asked)
            self._is_settled = True
        assert self._version is not None
        return self._version.signature

    async def infer(self, inputs: Tensors, rows: int, hints: Hints) -> Answer:
        """The answer to `inputs` of `rows` rows, which have passed `signature.check`.

        Raises EnginehouseError.
        """
        assert self._version is not None and self._is_settled, "signature was not read"
        # The metric leaves out the time to read and decode the body.
        self._began = time.monotonic_ns()
        self._caller.take(rows)
        self._answer = answer = await self._plane.router.infer(self._version, inputs, rows, hints)
        self._answered_at, self._rows = time.monotonic_ns(), rows
        return answer

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._admitted.__exit__()
        if self._counts is not None:
            self._counts.ended()
        # What fails after the answer, in encoding or as the client leaves, was answered here.
        self._record(None if self._answer is not None else kind)

    def _record(self, kind: type[BaseException] | None) -> None:
        plane, version, answer, now = self._plane, self._version, self._answer, time.monotonic_ns()
        name, number = (version.config.name, version.config.version) if version else self._name
        outcome = "ok" if kind is None else plane.metrics.outcome_of(kind)
        pool = "" if answer is None else answer.choice.backend.pool
        plane.metrics.record(self._face, name, number, pool, outcome, (now - self._began) / 1e9)
        if not name:
            return
        counts = plane.counted.of(name, number or plane.versions.wanted(name))
        if answer is not None:
            input_ns, output_ns = self._began - self._body_at, now - self._answered_at
            counts.succeeded(now - self._body_at, input_ns, output_ns, self._rows, answer.timing, answer.attempts)
        elif kind is not None and kind not in plane.hands_over:
            counts.failed(kind, outcome, now - self._body_at)
