"""FastAPI on uvicorn: POST the float32 bytes of a row to /infer.

Tuned as FastAPI's and uvicorn's deployment pages say: a process per core, uvloop and httptools, no access log, the raw
body and a bare Response in the place of JSON. The session runs in the event loop: a process has one engine, so a thread
pool could only add a hop. No batching: FastAPI has none.
"""

from __future__ import annotations

import uvicorn
from fastapi import FastAPI, Request, Response
from peer import HOST, PORT, WORKERS, Model

app = FastAPI(openapi_url=None)


if __name__ == "__main__":
    uvicorn.run(
        "server:app",
        host=HOST,
        port=PORT,
        workers=WORKERS,
        loop="uvloop",
        http="httptools",
        access_log=False,
        log_level="warning",
    )
else:
    model = Model()

    @app.post("/infer")
    async def infer(request: Request) -> Response:
        """The answer's float32 bytes."""
        return Response(model(model.row(await request.body())).tobytes())
