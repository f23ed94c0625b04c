"""Who asks: found by the token of a request, with what it may ask for and what is left of its rate.

caller = callers.find(authorization)         whoever reaches this, where the catalog names no callers
caller.check("read", "digits")
with plane.open(caller, "http", model) as turn: ...
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from fnmatch import fnmatchcase

from enginehouse.contract.config.access import CallerConfig, Role, tag
from enginehouse.contract.errors import ModelNotFound, PermissionDenied, RateExceeded, Unauthenticated

_SCHEME = b"bearer "


class Callers:
    """Those of the catalog, in one of `routers` processes."""

    def __init__(self, routers: int = 1) -> None:
        self._routers = routers
        #: By the sha256 of their tokens; None: nobody is asked for one.
        self._known: dict[bytes, Caller] | None = None
        #: Which those are; see `access.tag`.
        self.tag = ""

    @property
    def are_asked(self) -> bool:
        """Whether requests need a token."""
        return self._known is not None

    def follow(self, entries: Sequence[CallerConfig] | None) -> None:
        """Know these from now on; an entry that is as before keeps what is left of its rate."""
        self.tag = tag(None if entries is None else tuple(entries))
        if entries is None:
            self._known = None
            return
        before = {caller.config: caller for caller in (self._known or {}).values()}
        self._known = {
            bytes.fromhex(entry.sha256): before.get(entry) or Caller(entry, self._routers) for entry in entries
        }

    def find(self, authorization: bytes | str | None) -> Caller:
        """Who sends this header of HTTP or metadata of gRPC. Raises Unauthenticated."""
        known = self._known
        if known is None:
            return ANYBODY
        if authorization is None:
            raise Unauthenticated("a token is needed: send the header `Authorization: Bearer TOKEN`")
        given = authorization.encode("latin-1", "replace") if isinstance(authorization, str) else authorization
        if given[: len(_SCHEME)].lower() != _SCHEME:
            raise Unauthenticated("the Authorization of this request is no bearer token: send `Bearer TOKEN`")
        # A lookup takes as long as the common beginning of two digests says: of a digest, which nobody can steer
        # towards one that is known without 2^n hashes for n bits of it, and from which no token follows.
        caller = known.get(hashlib.sha256(given[len(_SCHEME) :].strip()).digest())
        if caller is None:
            raise Unauthenticated("the token of this request is not known here (any more)")
        return caller


class Caller:
    """One who may ask; None in the place of an entry is whoever need not be asked."""

    __slots__ = ("_models", "_requests", "_roles", "_rows", "config")

    def __init__(self, config: CallerConfig | None, routers: int = 1) -> None:
        self.config = config
        self._roles = frozenset(config.roles) if config else None
        self._models = config.models if config else None
        self._requests = self._rows = None
        if config and config.requests_per_s:
            self._requests = _Allowance(config.name, "requests", config.requests_per_s, routers)
        if config and config.rows_per_s:
            self._rows = _Allowance(config.name, "rows", config.rows_per_s, routers)

    def check(self, role: Role, model: str | None = None) -> None:
        """Raise PermissionDenied unless it has the role, and for this model; without one, for the server as a whole."""
        self.check_role(role)
        if model is None and self._models is not None:
            raise PermissionDenied("the token of this request is for some models only, and this is about all")
        if model is not None and not self.sees(model):
            raise PermissionDenied("the token of this request is not for this model")

    def check_role(self, role: Role) -> None:
        """As `check`, for what is about no model or shows only those that it `sees`."""
        if self._roles is not None and role not in self._roles:
            raise PermissionDenied(f"the token of this request has not the role {role!r} that this needs")

    def sees(self, model: str) -> bool:
        """Whether its list of models has this one."""
        return self._models is None or any(fnmatchcase(model, pattern) for pattern in self._models)

    def begin(self) -> None:
        """Count one request. Raises RateExceeded."""
        if self._rows is not None:
            self._rows.check()
        if self._requests is not None:
            self._requests.take(1)

    def take(self, rows: int) -> None:
        """Count the rows of a request, once they are known. Raises RateExceeded."""
        if self._rows is not None:
            self._rows.take(rows)

    def shown(self, error: ModelNotFound) -> ModelNotFound:
        """The error without the names of models that are not for this caller."""
        model, version, known = error.args
        return ModelNotFound(model, version, tuple(each for each in known if self.sees(each.partition("@")[0])))


class _Allowance:
    """A rate, of which a second may be used at once; what is larger than that passes too, and is waited for after."""

    __slots__ = ("_at", "_left", "_most", "_per_s", "_told")

    def __init__(self, name: str, what: str, per_s: float, routers: int) -> None:
        self._told = f"{name!r} is over its rate of {per_s:g} {what} a second"
        self._per_s = per_s / routers
        self._left = self._most = max(1.0, self._per_s)
        self._at = time.monotonic()

    def check(self) -> None:
        now = time.monotonic()
        self._left = min(self._most, self._left + (now - self._at) * self._per_s)
        self._at = now
        if self._left < 1:
            raise RateExceeded(self._told, max(0.001, round((1 - self._left) / self._per_s, 3)))

    def take(self, amount: int) -> None:
        self.check()
        self._left -= amount


#: Where no token is asked for: a server without callers, and inside of the cluster, where whoever asks runs code.
ANYBODY = Caller(None)
