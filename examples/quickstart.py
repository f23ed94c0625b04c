"""The whole line on real data: build -> serve -> HTTP (binary, JSON), Ray handle, batch scoring -> one table.

Run it with `./scripts/quickstart`. Every step is a command that you could type; they are printed as they run.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import psutil
import pyarrow as pa
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton
import typer
from examples.digits import held_out
from pyarrow import dataset, parquet
from rich.console import Console
from rich.table import Table
from tritonclient.utils import InferenceServerException

ROOT = Path(__file__).parent.parent
MODEL = "digits"
ROWS = 32
WARM_UP = 200
ACCURACY = 0.97
#: A pipe has no width of its own: wide enough for every table.
console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)


@dataclass(frozen=True)
class Route:
    """One way to the model: what it predicted, who answered, how fast. Latency is of single rows, one at a time."""

    predictions: list[int]
    backend: str
    latencies_s: list[float]
    rows_per_s: float

    def row(self, labels: np.ndarray) -> dict[str, Any]:
        p50, p99 = (
            [round(float(np.percentile(self.latencies_s, q)) * 1e3, 2) for q in (50, 99)]
            if self.latencies_s
            else (None, None)
        )
        return {
            "rows": len(self.predictions),
            "accuracy": round(float(np.mean(np.array(self.predictions) == labels)), 4),
            "backend": self.backend,
            "p50_ms": p50,
            "p99_ms": p99,
            "rows_per_s": round(self.rows_per_s, 1),
        }


def run(*command: str, env: dict[str, str], quiet: bool = False) -> None:
    """Run one step in the foreground; its failure is ours."""
    say(command)
    result = subprocess.run(command, cwd=ROOT, env=env, capture_output=quiet, text=True)
    if result.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{result.stderr if quiet else ''}")


def say(command: tuple[str, ...]) -> None:
    short = [Path(part).name if part in (sys.executable, ENGINEHOUSE) else part for part in command]
    console.print(f"[bold]$ {' '.join(short)}[/]")


ENGINEHOUSE = str(Path(sys.executable).parent / "enginehouse")


@contextlib.contextmanager
def served(
    store: Path, port: int, env: dict[str, str], stop: threading.Event
) -> Iterator[tuple[psutil.Process, float]]:
    """`enginehouse serve` until the context ends; yields its process and the seconds from its start to an answer."""
    command = (ENGINEHOUSE, "serve", str(store), "--port", str(port), "--grpc-port", str(port + 1))
    say(command)
    started = time.perf_counter()
    # A session of its own: Ctrl-C comes to us, and we end it in order.
    server = subprocess.Popen(
        command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    settled = threading.Event()

    def show() -> None:
        assert server.stdout is not None
        for line in server.stdout:
            console.print(f"  {line.rstrip()}", markup=False)
            if found := re.search(r"ray\.init\('(.+)'\)", line):
                # Ray looks here before it looks for any cluster of this machine.
                env["RAY_ADDRESS"] = found[1]
                settled.set()

    reader = threading.Thread(target=show, daemon=True)
    reader.start()
    try:
        first = first_answer(port, server, stop) - started
        while not settled.wait(0.1):
            check_running(server, stop)
        yield psutil.Process(server.pid), first
    finally:
        if server.poll() is None:
            server.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(60)
        reader.join(5)
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGKILL)


def check_running(server: subprocess.Popen[str], stop: threading.Event) -> None:
    if stop.is_set():
        raise KeyboardInterrupt
    if server.poll() is not None:
        raise SystemExit(f"`enginehouse serve` ended with code {server.returncode}")


def first_answer(port: int, server: subprocess.Popen[str], stop: threading.Event) -> float:
    """Time at which the first inference was answered."""
    images, _ = held_out()
    while True:
        check_running(server, stop)
        try:
            over_http(triton.InferenceServerClient(f"127.0.0.1:{port}"), images[:1], binary=True)
            return time.perf_counter()
        except (OSError, InferenceServerException):
            # Nothing listens yet, or the model is not warm yet.
            time.sleep(0.1)


def over_http(client: Any, images: np.ndarray, binary: bool) -> tuple[np.ndarray, str]:
    tensor = triton.InferInput("image", images.shape, "UINT8")
    tensor.set_data_from_numpy(images, binary_data=binary)
    wanted = triton.InferRequestedOutput("logits", binary_data=binary)
    result = client.infer(MODEL, [tensor], outputs=[wanted])
    return result.as_numpy("logits").argmax(1), str(result.get_response()["parameters"]["backend"])


def over_grpc(client: Any, images: np.ndarray) -> tuple[np.ndarray, str]:
    tensor = triton_grpc.InferInput("image", images.shape, "UINT8")
    tensor.set_data_from_numpy(images)
    result = client.infer(MODEL, [tensor])
    return result.as_numpy("logits").argmax(1), str(result.get_response().parameters["backend"].string_param)


def http_path(port: int, images: np.ndarray, binary: bool) -> Route:
    return request_path(
        images,
        lambda: triton.InferenceServerClient(f"127.0.0.1:{port}"),
        lambda client, some: over_http(client, some, binary),
    )


def grpc_path(port: int, images: np.ndarray) -> Route:
    return request_path(images, lambda: triton_grpc.InferenceServerClient(f"127.0.0.1:{port}"), over_grpc)


def request_path(
    images: np.ndarray, connect: Callable[[], Any], ask: Callable[[Any, np.ndarray], tuple[np.ndarray, str]]
) -> Route:
    """Every image alone for the latency, then all of them in requests of 32 rows, four at a time, for the rate."""
    client = connect()
    for _ in range(WARM_UP):
        ask(client, images[:1])
    predictions, latencies, backend = [], [], ""
    for index in range(len(images)):
        started = time.perf_counter()
        predicted, backend = ask(client, images[index : index + 1])
        latencies.append(time.perf_counter() - started)
        predictions.append(int(predicted[0]))
    # The client is built on gevent, which wants a client per thread.
    parts = np.array_split(np.arange(0, len(images), ROWS), 4)

    def part(starts: np.ndarray) -> list[tuple[int, list[int]]]:
        mine = connect()
        return [(int(s), ask(mine, images[s : s + ROWS])[0].tolist()) for s in starts]

    started = time.perf_counter()
    with ThreadPoolExecutor(len(parts)) as pool:
        pieces = sorted(piece for pieces in pool.map(part, parts) for piece in pieces)
    elapsed = time.perf_counter() - started
    expect_same(predictions, [value for _, piece in pieces for value in piece], "single rows and batches")
    return Route(predictions, backend, latencies, len(images) / elapsed)


def handle_path(images: np.ndarray, folder: Path, env: dict[str, str]) -> Route:
    """From a second Ray job that has only Ray and numpy."""
    np.save(folder / "images.npy", images)
    script = "examples/handle_client.py"
    run(sys.executable, script, str(folder / "images.npy"), str(folder / "handle.json"), env=env, quiet=True)
    result = json.loads((folder / "handle.json").read_text())
    expect_same(result["predictions"], result["batched"], "single rows and batches")
    return Route(result["predictions"], result["backend"], result["latencies"], result["rows_per_s"])


def batch_path(images: np.ndarray, folder: Path, env: dict[str, str]) -> Route:
    """Parquet in, Parquet out, joined by id; the rate is that of the whole command, start included."""
    source, target = folder / "digits.parquet", folder / "scores"
    parquet.write_table(pa.table({"id": np.arange(len(images)), "image": images.tolist()}), source)
    started = time.perf_counter()
    run(ENGINEHOUSE, "score", MODEL, str(source), str(target), env=env, quiet=True)
    elapsed = time.perf_counter() - started
    table = dataset.dataset(target).to_table().sort_by("id")
    if table["id"].to_pylist() != list(range(len(images))):
        raise SystemExit("batch scoring lost or repeated rows")
    logits = np.array(table["output.logits"].to_pylist())
    return Route(logits.argmax(1).tolist(), ", ".join(table["backend"].unique().to_pylist()), [], len(images) / elapsed)


def expect_same(one: list[int], other: list[int], what: str) -> None:
    if one != other:
        raise SystemExit(f"{what} do not agree on {sum(a != b for a, b in zip(one, other, strict=True))} rows")


def memory_mib(process: psutil.Process) -> tuple[int, float, float]:
    """Number of serving processes, and their summed RSS and PSS in MiB. PSS counts a shared page once."""
    rss = pss = 0
    everyone = [process, *process.children(recursive=True)]
    for member in everyone:
        with contextlib.suppress(psutil.Error):
            info = member.memory_full_info()
            rss, pss = rss + info.rss, pss + info.pss
    return len(everyone), rss / 2**20, pss / 2**20


def show_table(document: dict[str, Any]) -> None:
    table = Table(title=f"{MODEL}: held-out digits over every path", title_justify="left")
    for column in ("path", "rows", "accuracy", "backend", "p50 ms", "p99 ms", "rows/s"):
        table.add_column(column, justify="left" if column in ("path", "backend") else "right")
    for name, row in document["paths"].items():
        table.add_row(name, *("-" if value is None else str(value) for value in row.values()))
    console.print(table)


def main(
    once: Annotated[bool, typer.Option(help="Do it once and exit; non-zero if a path failed.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the table to this file.")] = None,
    port: Annotated[int, typer.Option(help="HTTP port; gRPC has the next one.")] = 8000,
) -> None:
    """Build, serve and use the digits model on this machine."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    if json_file is not None and not json_file.absolute().parent.is_dir():
        raise SystemExit(f"--json {json_file}: there is no such folder")
    for taken in (port, port + 1):
        with contextlib.closing(socket.socket()) as probe:
            if probe.connect_ex(("127.0.0.1", taken)) == 0:
                raise SystemExit(f"port {taken} is in use; choose another with --port")
    install_s = float((ROOT / ".venv/.install-seconds").read_text())
    with contextlib.ExitStack() as cleanup:
        folder = Path(tempfile.mkdtemp(prefix="eh-"))
        cleanup.callback(shutil.rmtree, folder, ignore_errors=True)
        # A Ray of our own, which other jobs may use with this token.
        env = os.environ | {
            "COLUMNS": str(console.width - 2),
            "RAY_TMPDIR": str(folder),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
        }
        started = time.perf_counter()
        store = folder / "store"
        run(ENGINEHOUSE, "build", "examples.digits:digits", "--name", MODEL, "--store", str(store), env=env)
        build_s = time.perf_counter() - started
        server, ready_s = cleanup.enter_context(served(store, port, env, stop))
        count, rss, pss = memory_mib(server)
        images, labels = held_out()
        ways: dict[str, Callable[[], Route]] = {
            "http_binary": lambda: http_path(port, images, binary=True),
            "http_json": lambda: http_path(port, images, binary=False),
            "grpc": lambda: grpc_path(port + 1, images),
            "handle": lambda: handle_path(images, folder, env),
            "batch": lambda: batch_path(images, folder, env),
        }
        paths: dict[str, Route] = {}
        for name, way in ways.items():
            if stop.is_set():
                return
            console.print(f"sending {len(images)} digits: {name}")
            paths[name] = way()
        rows = {name: path.row(labels) for name, path in paths.items()}
        seconds = {"install": install_s, "build": round(build_s, 1), "ready": round(ready_s, 1)}
        document = {"model": MODEL, "paths": rows, "seconds": seconds}
        show_table(document)
        console.print(f"seconds: {', '.join(f'{name} {value}' for name, value in seconds.items())}")
        console.print(f"idle memory of the {count} serving processes: RSS {rss:.0f} MiB, PSS {pss:.0f} MiB")
        if json_file is not None:
            json_file.write_text(json.dumps(document, indent=2) + "\n")
        wrong = [name for name, row in rows.items() if row["accuracy"] < ACCURACY]
        different = [name for name, path in paths.items() if path.predictions != paths["http_binary"].predictions]
        if wrong or different:
            raise SystemExit(f"accuracy below {ACCURACY}: {wrong}; predictions differ from http_binary: {different}")
        if not once:
            request = {"inputs": [{"name": "image", "shape": [1, 8, 8], "datatype": "UINT8"}]}
            request["inputs"][0]["data"] = images[0].ravel().tolist()  # type: ignore[assignment]
            console.print(f"\nserving until Ctrl-C; this digit is a {labels[0]}:")
            # Plain print: a wrapped line could not be pasted.
            print(f"curl -s http://127.0.0.1:{port}/v2/models/{MODEL}/infer -d '{json.dumps(request)}'", flush=True)
            stop.wait()


if __name__ == "__main__":
    typer.run(main)
