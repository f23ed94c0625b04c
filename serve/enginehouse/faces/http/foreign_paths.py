"""Paths of Triton's extensions that are not served here: what a client of Triton that asks for one is told."""

from __future__ import annotations

import re

_MODEL = r"/v2/models/[^/]+(?:/versions/[^/]+)?"
#: What is asked for by a path, and what there is in its place.
_EXTENSIONS = {
    r"/v2/repository(?:/[^/]+)?/models/[^/]+/load": "loading by request: `enginehouse models add` loads",
    r"/v2/repository(?:/[^/]+)?/models/[^/]+/unload": "unloading by request: `enginehouse models remove` unloads",
    "/v2/(?:system|cuda|tpu|xpu)sharedmemory(?:/.*)?": "shared memory: send binary tensors in the body",
    f"(?:{_MODEL}|/v2)/trace(?:/.*)?": "traces",
    "/v2/logging": "log settings",
    f"{_MODEL}/generate(?:_stream)?": "generating: inference is at /v2/models/<model>/infer",
}
_KNOWN = [(re.compile(path), told) for path, told in _EXTENSIONS.items()]


def not_supported(path: str) -> str:
    """What to say of a path of an extension; "" for any other one."""
    for known, told in _KNOWN:
        if known.fullmatch(path.rstrip("/")):
            what, sign, instead = told.partition(": ")
            return f"{path!r} is not supported by this server, which has no {what}{'; ' if sign else ''}{instead}"
    return ""
