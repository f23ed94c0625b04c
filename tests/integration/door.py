"""A local server with tokens and mutual TLS, and clients that have a certificate."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import tritonclient.grpc as triton
import yaml
from tests.integration import bundles
from tests.integration.certificates import Authority
from tests.integration.local_server import LocalServer
from tritonclient.grpc import service_pb2 as pb

INFER, READ, ADMIN, SOME, SLOW, GONE = (
    f"{name}-{'0123456789abcdef' * 2}" for name in ("infer", "read", "admin", "some", "slow", "gone")
)
TOKENS: dict[str, dict[str, Any]] = {
    INFER: {"roles": ["infer"]},
    READ: {"roles": ["read"]},
    ADMIN: {"roles": ["admin"]},
    SOME: {"roles": ["infer", "read"], "models": ["scale"]},
    SLOW: {"roles": ["infer"], "requests_per_s": 0.1},
    GONE: {"roles": ["infer"]},
}
BODY = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]}


class Door:
    """The server, its files, and clients that have a certificate."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = Authority(folder)
        self.cert, self.key = self.authority.vouch("server")
        self.client_cert, self.client_key = self.authority.vouch("client")
        self.tokens = folder / "tokens.yaml"
        self.write(TOKENS)
        store = folder / "store"
        for name in ("scale", "other"):
            bundles.publish(store, name, "1", 2)
        self.server = LocalServer(
            folder, store, "--tokens", str(self.tokens), "--tls-cert", str(self.cert), "--tls-key", str(self.key),
            "--tls-client-ca", str(self.authority.path),
        )  # fmt: skip
        self.url = self.server.url.replace("http:", "https:")
        self.grpc_at = f"127.0.0.1:{self.server.port + 1}"

    def write(self, tokens: dict[str, dict[str, Any]]) -> None:
        entries = [{"name": token.partition("-")[0], "token": token, **rest} for token, rest in tokens.items()]
        self.tokens.touch(mode=0o600)
        self.tokens.write_text(yaml.safe_dump({"tokens": entries}))

    def context(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self.authority.path)
        context.load_cert_chain(self.client_cert, self.client_key)
        return context

    def connection(self) -> ssl.SSLSocket:
        plain = socket.create_connection(("127.0.0.1", self.server.port), 30)
        return self.context().wrap_socket(plain, server_hostname="127.0.0.1")

    def client(self, token: str = "") -> httpx.Client:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return httpx.Client(base_url=self.url, verify=self.context(), headers=headers, timeout=30)

    def status(self, token: str, method: str, path: str) -> int:
        with self.client(token) as client:
            return client.request(method, path, json=BODY if path.endswith("/infer") else None).status_code

    def channel(self) -> grpc.Channel:
        files = (self.authority.path, self.client_key, self.client_cert)
        return grpc.secure_channel(self.grpc_at, grpc.ssl_channel_credentials(*(file.read_bytes() for file in files)))

    def triton(self) -> triton.InferenceServerClient:
        files = {"root_certificates": self.authority.path, "private_key": self.client_key}
        files["certificate_chain"] = self.client_cert
        return triton.InferenceServerClient(self.grpc_at, ssl=True, **{name: str(path) for name, path in files.items()})


def message(model: str = "scale", rows: int = 1) -> bytes:
    request = pb.ModelInferRequest(model_name=model)
    request.inputs.add(name="x", datatype="FP32", shape=[rows, 4])
    request.raw_input_contents.append(np.ones((rows, 4), np.float32).tobytes())
    return bytes(request.SerializeToString())


def of(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),) if token else ()


def code(call: Callable[[], Any]) -> str:
    try:
        call()
    except grpc.RpcError as error:
        assert "0123456789abcdef" not in str(error.details())
        return str(error.code().name)
    return "OK"
