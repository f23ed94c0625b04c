"""Every error of enginehouse, and the one table of what each means: to its caller, to failover, to every face.

    EnginehouseError
    ├── RequestError                the caller's mistake; the same request fails again
    │   ├── InvalidInput
    │   ├── Unauthenticated
    │   ├── PermissionDenied
    │   ├── ModelNotFound
    │   ├── BodyTimeout
    │   ├── RequestTooLarge
    │   └── UnsupportedEncoding
    ├── CapacityError               nothing wrong with the request; retryable
    │   ├── Overloaded
    │   │   └── RateExceeded
    │   ├── NoBackend
    │   ├── StoreUnavailable
    │   └── DeadlineExceeded
    ├── EngineError                 an engine could not start or run
    │   ├── EngineUnavailable
    │   │   └── ReplicaLost
    │   └── InferenceFailed
    ├── BundleError                 what is on disk is not what was promised
    │   ├── ManifestInvalid
    │   ├── ArtifactMissing
    │   └── DigestMismatch
    ├── BuildError
    │   ├── ExportFailed
    │   ├── ConversionFailed
    │   ├── ParityFailed
    │   └── StepDied
    └── ConfigError                 a configuration that cannot work

`FAULTS` at the end says whose fault each is: HTTP status, gRPC status, what may still help, whether to send it again.
No other module keeps such a list. What a store, a pool or a configuration cannot do is never the caller's fault.

Errors cross process boundaries on Ray, so each class hands *all* its arguments to ``super().__init__`` (which is
what pickle replays) and composes its message in ``__str__``. A message names the value at fault and the way out;
credentials of URLs are taken out of the arguments.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal, NamedTuple, TypeAlias

from enginehouse.contract.shown import redacted

#: What may still answer a request that met an error. `nothing`: the request is at fault. `another if sick`: another
#: backend, if this one fails others too; else the request is at fault. `another`: another backend, but waiting does not
#: help. `another or later`: another backend, or the same one a moment later.
Help: TypeAlias = Literal["nothing", "another if sick", "another", "another or later"]


class Fault(NamedTuple):
    """What an error means: its HTTP status, the name of its gRPC status, what helps, and `retryable`.

    `retryable`: the same request, sent again later, may well be answered.
    """

    http: int
    grpc: str
    help: Help
    retryable: bool

    @property
    def is_of_content(self) -> bool:
        """Whether what is in the request may have caused it."""
        return self.help in ("nothing", "another if sick")


class EnginehouseError(Exception):
    """Base of all errors raised by enginehouse on purpose."""

    #: This class's line of `FAULTS`, and two of its columns.
    fault: ClassVar[Fault]
    status: ClassVar[int]
    retryable: ClassVar[bool]

    def __init__(self, *arguments: object) -> None:
        # Here, so that no message can be composed that tells what its maker did not think of.
        super().__init__(*(redacted(each) if isinstance(each, str) else each for each in arguments))

    def __str__(self) -> str:
        return " ".join(str(argument) for argument in self.args)


class RequestError(EnginehouseError):
    """The request itself is wrong; sending it again cannot help."""


class InvalidInput(RequestError):
    """The request does not fit the model: its encoding, names, dtypes, shapes or values.

    Found at the door by the signature, by the router when no artifact is right for its values, or else by the engine,
    whose message it then has. After an engine no other one is asked: a less strict one would answer with something.
    """


class Unauthenticated(RequestError):
    """The request has no token, or one that is not known here."""


class PermissionDenied(RequestError):
    """The token of the request does not allow it."""


class ModelNotFound(RequestError):
    """No such model, or no such version of it, is served here."""

    def __init__(self, model: str, version: str | None = None, known: tuple[str, ...] = ()) -> None:
        super().__init__(model, version, known)

    def __str__(self) -> str:
        model, version, known = self.args
        what = f"model {model!r}" + (f" version {version!r}" if version else "")
        have = ", ".join(known) if known else "none"
        name, _, number = model.partition("@")
        way = "add it with `enginehouse models add`"
        if version is not None and not isinstance(version, str):
            way = f"a version is text: {str(version)!r}"
        elif number and not version:
            way = f"send the version apart: model {name!r}, version {number!r}; /v2/models/{name}/versions/{number}"
        return f"{what} is not served here; served: {have} ({way})"


class BodyTimeout(RequestError):
    """The body of a request did not arrive in time."""


class RequestTooLarge(RequestError):
    """A request has more rows or bytes than the server takes in one piece."""


class UnsupportedEncoding(RequestError):
    """The body of a request is compressed in a way that is not known here."""


class CapacityError(EnginehouseError):
    """Nothing is wrong with the request, but it cannot be answered now."""


class Overloaded(CapacityError):
    """The queues are full, or so long that the deadline would pass; in `retry_after_s` seconds there may be room."""

    def __init__(self, reason: str, retry_after_s: float = 1) -> None:
        super().__init__(reason, retry_after_s)

    def __str__(self) -> str:
        reason, retry_after_s = self.args
        return f"{reason}; try again in {retry_after_s} s"

    @property
    def retry_after_s(self) -> float:
        """Seconds."""
        return float(self.args[1])


class RateExceeded(Overloaded):
    """The caller has asked for more than its rate allows; in `retry_after_s` seconds it may go on."""


class NoBackend(CapacityError):
    """No live backend can answer this model now; the message says why each one is out."""


class StoreUnavailable(CapacityError):
    """The store, or what holds it, cannot be read now: an outage, which says nothing of the bundles in it."""


class DeadlineExceeded(CapacityError):
    """The caller's deadline passed before an answer was there."""


class EngineError(EnginehouseError):
    """An engine could not be started or could not run."""


class EngineUnavailable(EngineError):
    """The engine asked for cannot run in this process; nothing else was started in its place."""

    def __init__(self, engine: str, reason: str) -> None:
        super().__init__(engine, reason)

    def __str__(self) -> str:
        engine, reason = self.args
        return f"engine {engine!r} is not available here: {reason}"


class ReplicaLost(EngineUnavailable):
    """The replica was killed, or crashed, while it had the request: `stage` says how far that was."""

    def __init__(self, engine: str, reason: str, stage: str = "under way") -> None:
        super(EngineUnavailable, self).__init__(engine, reason, stage)

    def __str__(self) -> str:
        engine, reason, stage = self.args
        return f"a replica of {engine!r} was lost with the request {stage}: {reason}"

    @property
    def stage(self) -> str:
        """How far the request was."""
        return str(self.args[2])


class InferenceFailed(EngineError):
    """The engine failed on a batch that had passed the signature check, and did not blame it on the request.

    What it blames on the request is InvalidInput (see `enginehouse.engines.refusals`).
    """


class BundleError(EnginehouseError):
    """A bundle on disk is not what its manifest promises."""


class ManifestInvalid(BundleError):
    """A manifest is missing, unreadable or breaks the schema."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)

    def __str__(self) -> str:
        path, reason = self.args
        return f"{path}: not a usable manifest: {reason}; rebuild the bundle with `enginehouse build`"


class ArtifactMissing(BundleError):
    """A bundle has no artifact that was asked for, or one of its files is gone."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)

    def __str__(self) -> str:
        path, reason = self.args
        return f"{path}: {reason}"


class DigestMismatch(BundleError):
    """A file's sha256 is not the one in the manifest; the artifact is not loaded."""

    def __init__(self, path: str, expected: str, actual: str) -> None:
        super().__init__(path, expected, actual)

    def __str__(self) -> str:
        path, expected, actual = self.args
        return (
            f"{path}: sha256 is {actual}, the manifest says {expected}; the file changed after it was built "
            "(rebuild the bundle or restore the file)"
        )


class BuildError(EnginehouseError):
    """A step of the build stage failed."""


class ExportFailed(BuildError):
    """The source could not be turned into the fp32 ONNX reference."""


class ConversionFailed(BuildError):
    """A format or precision could not be made from the reference."""


class ParityFailed(BuildError):
    """An artifact's answers are further from the fp32 reference than its gate allows."""


class StepDied(BuildError):
    """A step's process crashed, hung or outgrew its memory, so it may well succeed another time."""


class ConfigError(EnginehouseError):
    """A configuration, or a command's option, names something that does not exist or cannot work."""


_REFUSED = Fault(400, "INVALID_ARGUMENT", "nothing", retryable=False)
_UNAVAILABLE = Fault(503, "UNAVAILABLE", "another or later", retryable=True)
_BROKEN = Fault(500, "FAILED_PRECONDITION", "another", retryable=False)
_FAILED = Fault(500, "INTERNAL", "nothing", retryable=False)

#: The table. gRPC names are those of `grpc.StatusCode`, chosen as its documentation describes them.
FAULTS: Mapping[type[EnginehouseError], Fault] = {
    EnginehouseError: _FAILED,
    RequestError: _REFUSED,
    InvalidInput: _REFUSED,
    Unauthenticated: Fault(401, "UNAUTHENTICATED", "nothing", retryable=False),
    PermissionDenied: Fault(403, "PERMISSION_DENIED", "nothing", retryable=False),
    # A replica has unloaded what another one still has.
    ModelNotFound: Fault(404, "NOT_FOUND", "another or later", retryable=False),
    BodyTimeout: Fault(408, "CANCELLED", "nothing", retryable=False),
    RequestTooLarge: Fault(413, "INVALID_ARGUMENT", "nothing", retryable=False),
    UnsupportedEncoding: Fault(415, "UNIMPLEMENTED", "nothing", retryable=False),
    CapacityError: _UNAVAILABLE,
    Overloaded: Fault(429, "RESOURCE_EXHAUSTED", "another or later", retryable=True),
    RateExceeded: Fault(429, "RESOURCE_EXHAUSTED", "another or later", retryable=True),
    NoBackend: _UNAVAILABLE,
    # Outages last longer than requests wait.
    StoreUnavailable: Fault(503, "UNAVAILABLE", "another", retryable=True),
    DeadlineExceeded: Fault(504, "DEADLINE_EXCEEDED", "another or later", retryable=True),
    EngineError: Fault(500, "INTERNAL", "another if sick", retryable=False),
    EngineUnavailable: _UNAVAILABLE,
    ReplicaLost: _UNAVAILABLE,
    InferenceFailed: Fault(500, "INTERNAL", "another if sick", retryable=False),
    BundleError: _BROKEN,
    ManifestInvalid: _BROKEN,
    ArtifactMissing: _BROKEN,
    DigestMismatch: Fault(500, "DATA_LOSS", "another", retryable=False),
    BuildError: _FAILED,
    ExportFailed: _FAILED,
    ConversionFailed: _FAILED,
    ParityFailed: _FAILED,
    StepDied: _FAILED,
    # Of a node, such as a missing package: the next one may be well.
    ConfigError: _BROKEN,
}


# They are pickled, and shown in tracebacks, by their public name: that is the same in every release, wherever they are
# defined, so that a client and a cluster of two releases understand each other's errors.
for _error, _fault in FAULTS.items():
    _error.__module__ = "enginehouse"
    _error.fault, _error.status, _error.retryable = _fault, _fault.http, _fault.retryable
del _error, _fault
