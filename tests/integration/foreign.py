"""Somebody else's Serve application on the same cluster."""

from __future__ import annotations

import os
from typing import Any

from ray import serve
from starlette.requests import Request


@serve.deployment(ray_actor_options={"num_cpus": 0.1})
class Foreign:
    async def __call__(self, request: Request) -> dict[str, Any]:
        return {"pid": os.getpid(), "said": request.query_params.get("say")}


app = Foreign.bind()
