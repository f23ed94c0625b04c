"""Every error of enginehouse, with the HTTP status it becomes and whether a retry can help.

    EnginehouseError
    ├── RequestError                the caller's mistake; the same request fails again
    │   ├── InvalidInput       400
    │   ├── ModelNotFound      404
    │   └── RequestTooLarge    413
    ├── CapacityError               nothing wrong with the request; retryable
    │   ├── Overloaded         429
    │   ├── NoBackend          503
    │   └── DeadlineExceeded   504
    ├── EngineError                 an engine could not start or run
    │   ├── EngineUnavailable  503
    │   │   └── ReplicaLost
    │   └── InferenceFailed    500
    ├── BundleError            500  what is on disk is not what was promised
    │   ├── ManifestInvalid
    │   ├── ArtifactMissing
    │   └── DigestMismatch
    ├── BuildError             500
    │   ├── ExportFailed
    │   ├── ConversionFailed
    │   ├── ParityFailed
    │   └── StepDied
    └── ConfigError            400  a serving configuration that cannot work

Errors cross process boundaries on Ray, so each class hands *all* its arguments to ``super().__init__`` (which is
what pickle replays) and composes its message in ``__str__``. A message names the value at fault and the way out.
"""

from __future__ import annotations

from typing import ClassVar


class EnginehouseError(Exception):
    """Base of all errors raised by enginehouse on purpose."""

    status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False

    def __str__(self) -> str:
        return " ".join(str(argument) for argument in self.args)


class RequestError(EnginehouseError):
    """The request itself is wrong; sending it again cannot help."""

    status = 400


class InvalidInput(RequestError):
    """The request does not fit the model: its encoding, names, dtypes, shapes or values.

    Found at the door by the signature, or else by the engine, whose message it then has. No other engine is asked: one
    that is less strict would answer with something.
    """


class ModelNotFound(RequestError):
    """No such model, or no such version of it, is served here."""

    status = 404

    def __init__(self, model: str, version: str | None = None, known: tuple[str, ...] = ()) -> None:
        super().__init__(model, version, known)

    def __str__(self) -> str:
        model, version, known = self.args
        what = f"model {model!r}" + (f" version {version!r}" if version else "")
        have = ", ".join(known) if known else "none"
        return f"{what} is not served here; served: {have} (add it with `enginehouse models add`)"


class RequestTooLarge(RequestError):
    """A request has more rows or bytes than the server takes in one piece."""

    status = 413


class CapacityError(EnginehouseError):
    """Nothing is wrong with the request, but it cannot be answered now."""

    status = 503
    retryable = True


class Overloaded(CapacityError):
    """The queues are full, or so long that the deadline would pass; in `retry_after_s` seconds there may be room."""

    status = 429

    def __init__(self, reason: str, retry_after_s: float = 1) -> None:
        super().__init__(reason, retry_after_s)

    def __str__(self) -> str:
        reason, retry_after_s = self.args
        return f"{reason}; try again in {retry_after_s} s"

    @property
    def retry_after_s(self) -> float:
        """Seconds."""
        return float(self.args[1])


class NoBackend(CapacityError):
    """No live backend can answer this model now; the message says why each one is out."""


class DeadlineExceeded(CapacityError):
    """The caller's deadline passed before an answer was there."""

    status = 504


class EngineError(EnginehouseError):
    """An engine could not be started or could not run."""


class EngineUnavailable(EngineError):
    """The engine asked for cannot run in this process; nothing else was started in its place."""

    status = 503

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
    """A serving configuration names something that does not exist or cannot work."""

    status = 400


# They are pickled, and shown in tracebacks, by their public name: that is the same in every release, wherever they are
# defined, so that a client and a cluster of two releases understand each other's errors.
for _name, _error in list(globals().items()):
    if isinstance(_error, type) and issubclass(_error, EnginehouseError):
        _error.__module__ = "enginehouse"
del _name, _error
