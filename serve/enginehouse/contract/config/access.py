"""Who may ask a server for what: entries of the catalog, which know of each token only its sha256."""

from __future__ import annotations

import hashlib
import os
from ipaddress import ip_address
from typing import Annotated, Literal, TypeAlias, get_args

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

#: `infer`: ask a model. `read`: metadata, configuration, readiness of models, index, statistics, metrics. `admin`: load
#: and unload. None includes another.
Role: TypeAlias = Literal["infer", "read", "admin"]
ROLES: tuple[Role, ...] = get_args(Role)
#: Variable with the token that commands send over HTTP.
TOKEN = "ENGINEHOUSE_TOKEN"


class CallerConfig(BaseModel):
    """One who may ask: `roles`, for `models` (globs; None: all, and the server as a whole), at these rates at most.

    A router lets through its share of a rate. `sha256` is that of the token.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    # Not `{1,64}` in the pattern: as Unicode has some 140,000 letters, it takes 4 MiB in every process.
    name: Annotated[str, StringConstraints(pattern=r"^[\w.@-]+$", max_length=64)]
    sha256: Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]
    roles: tuple[Role, ...] = Field(min_length=1)
    models: tuple[str, ...] | None = None
    requests_per_s: float | None = Field(default=None, gt=0)
    rows_per_s: float | None = Field(default=None, gt=0)


def digest(token: str | bytes) -> str:
    """What stands for a token wherever it is kept."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape") if isinstance(token, str) else token).hexdigest()


def tag(callers: tuple[CallerConfig, ...] | None) -> str:
    """What differs where others may ask; "" where anybody may."""
    return "" if callers is None else hashlib.sha256(repr(callers).encode()).hexdigest()[:16]


def own_token() -> dict[str, str]:
    """The header that commands send over HTTP: with the token of the environment, if there is one."""
    token = os.environ.get(TOKEN, "").strip()
    return {"Authorization": f"Bearer {token}"} if token else {}


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches who listens there."""
    if host == "localhost":
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
