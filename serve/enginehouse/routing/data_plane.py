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
from enginehouse.contract.errors import NoBackend
from enginehouse.contract.signature_record import check_extents
from enginehouse.contract.tensors import Signature, Tensors, checked_arrays, checked_name, nbytes
from enginehouse.routing.admission import Admission, Admitted
from enginehouse.routing.admission.callers import ANYBODY, Caller, Callers
from enginehouse.routing.answer import Answer, Explained
from enginehouse.routing.hints import Hints
from enginehouse.routing.router import Router
from enginehouse.routing.telemetry import RequestMetrics
from enginehouse.routing.versions import Versions
from enginehouse.routing.view import ModelVersion


class DataPlane:
    """The one way from any face to an answer; one per process, with the admission and the statistics of that process.

    `versions` says which version answers for a name, `callers` who may ask over HTTP and gRPC.
    """

    def __init__(
        self, router: Router, versions: Versions, max_requests: int, max_bytes: int, callers: Callers | None = None
    ) -> None:
        self.router = router
        self.versions = versions
        self.callers = callers or Callers()
        self.admission = Admission(max_requests, max_bytes)
        self.metrics = RequestMetrics()
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
    def refusals(self, face: str) -> Iterator[None]:
        """Count a request that is refused in the context, before it can have a turn: for its hints."""
        try:
            yield
        except Exception as error:
            self.metrics.record(face, "", "", "", self.metrics.outcome_of(type(error)), 0.0)
            raise

    async def infer(self, face: str, model: str, inputs: Tensors, hints: Hints, version: str | None = None) -> Answer:
        """A whole turn, from inside of the cluster, for inputs that are decoded already. Raises EnginehouseError."""
        with self.refusals(face):
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
        "_asked",
        "_began",
        "_caller",
        "_face",
        "_is_settled",
        "_name",
        "_plane",
        "_pool",
        "_priority",
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
        self._pool = ""
        self._began = time.monotonic()

    def __enter__(self) -> Turn:
        try:
            # Before anything is revealed, counted or read.
            if self._caller is not ANYBODY:
                self._caller.check("infer", self._asked[0])
                self._caller.begin()
            if self._plane.refuses:
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
            self._record(self._plane.metrics.outcome_of(type(error)))
            raise
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
        self._began = time.monotonic()
        self._caller.take(rows)
        answer = await self._plane.router.infer(self._version, inputs, rows, hints)
        self._pool = answer.choice.backend.pool
        return answer

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._admitted.__exit__()
        # What fails after the answer, in encoding or as the client leaves, was answered here.
        self._record("ok" if kind is None or self._pool else self._plane.metrics.outcome_of(kind))

    def _record(self, outcome: str) -> None:
        version = self._version
        name, number = (version.config.name, version.config.version) if version else self._name
        seconds = time.monotonic() - self._began
        self._plane.metrics.record(self._face, name, number, self._pool, outcome, seconds)
