"""`enginehouse infer`: one request over HTTP, from a file or inline JSON."""

from __future__ import annotations

# The standard library: NaN and infinities are part of the protocol as Triton speaks it, and orjson has none.
import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from enginehouse.contract.errors import ConfigError, InvalidInput, NoBackend
from enginehouse.contract.tensors import DTYPES
from enginehouse.tools.cli.console import err


def infer(
    model: Annotated[str, typer.Argument(help="Model, `name` or `name@version`.")],
    data: Annotated[str, typer.Argument(metavar="INPUT", help='.npz or .json file, or inline JSON: {"x": [[1, 2]]}.')],
    url: Annotated[str, typer.Option(help="Where it is served.")] = "http://127.0.0.1:8000",
    output: Annotated[Path | None, typer.Option(help="Write the outputs to this .npz file.")] = None,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for the answer.")] = 30,
) -> None:
    """Send one request and print the outputs as JSON; who answered goes to stderr."""
    if output is not None and not output.parent.is_dir():
        raise ConfigError(f"{output.parent} is no folder; --output needs one that exists")
    name, _, version = model.partition("@")
    path = f"{url.rstrip('/')}/v2/models/{name}" + (f"/versions/{version}" if version else "")
    document, _ = _call(path, None, timeout)
    values = _values(data)
    body = {"inputs": [_tensor(spec, values) for spec in document["inputs"]]}
    unknown = sorted(set(values) - {spec["name"] for spec in document["inputs"]})
    if unknown:
        raise InvalidInput(f"no input {', '.join(unknown)}; {name!r} wants {_wanted(document)}")
    answer, headers = _call(f"{path}/infer", json.dumps(body).encode(), timeout)
    facts = {
        key.removeprefix("enginehouse-"): value for key, value in headers.items() if key.startswith("enginehouse-")
    }
    err.print(", ".join(f"{key} {value}" for key, value in facts.items()))
    arrays = {
        tensor["name"]: np.array(tensor["data"], dtype=DTYPES[tensor["datatype"]]).reshape(tensor["shape"])
        for tensor in answer["outputs"]
    }
    if output is not None:
        np.savez(output, **arrays)  # type: ignore[arg-type]
    else:
        typer.echo(json.dumps({key: array.tolist() for key, array in arrays.items()}))


def _values(data: str) -> dict[str, Any]:
    if data.endswith(".npz"):
        if not Path(data).is_file():
            raise InvalidInput(f"{data}: no such file")
        with np.load(data, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    text = data if data.lstrip().startswith("{") else _text_of(data)
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise InvalidInput(f"INPUT is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise InvalidInput('INPUT must be an object of inputs by name, such as {"x": [[1, 2]]}')
    return values


def _text_of(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError as error:
        raise InvalidInput(f"{path}: {error.strerror or error}; give a .npz or .json file, or inline JSON") from None


def _tensor(spec: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    if spec["name"] not in values:
        raise InvalidInput(f"INPUT has no {spec['name']!r}; the model wants {spec['datatype']}{spec['shape']}")
    try:
        array = np.asarray(values[spec["name"]])
    except ValueError as error:
        raise InvalidInput(f"input {spec['name']!r}: {error}") from None
    # As it was given: the server checks every value against the model's datatype and names the one at fault.
    return {"name": spec["name"], "datatype": spec["datatype"], "shape": array.shape, "data": array.ravel().tolist()}


def _wanted(document: dict[str, Any]) -> str:
    return ", ".join(f"{spec['name']}: {spec['datatype']}{spec['shape']}" for spec in document["inputs"])


def _call(url: str, body: bytes | None, timeout: float) -> tuple[dict[str, Any], dict[str, str]]:
    try:
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"} if body else {})
    except ValueError:
        raise InvalidInput(f"{url!r} is no URL; --url is such as http://127.0.0.1:8000") from None
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:
            return json.loads(response.read()), {key.lower(): value for key, value in response.headers.items()}
    except urllib.error.HTTPError as error:
        raise InvalidInput(f"{url} answered {error.code}: {_error_of(error.read())}") from None
    except OSError as error:
        reason = getattr(error, "reason", None) or error
        raise NoBackend(f"{url}: {reason}; is `enginehouse serve` running?") from None


def _error_of(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"])
    except (json.JSONDecodeError, KeyError, TypeError):
        return body[:200].decode(errors="replace")
