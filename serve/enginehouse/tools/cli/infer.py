"""`enginehouse infer`: one request over HTTP, from a file or inline JSON."""

from __future__ import annotations

# The standard library: NaN and infinities are part of the protocol as Triton speaks it, and orjson has none.
import http.client
import json
import reprlib
import urllib.error
import urllib.request
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from enginehouse.contract.config.access import own_token
from enginehouse.contract.elements import BINARY_ONLY, to_bytes
from enginehouse.contract.errors import DeadlineExceeded, InvalidInput, NoBackend
from enginehouse.contract.magic import recognised
from enginehouse.contract.tensors import DTYPES
from enginehouse.tools.cli.console import err
from enginehouse.tools.cli.options import seconds
from enginehouse.tools.cli.output_file import check_output
from enginehouse.tools.cli.request_file import is_inline, read_inputs

#: Elements; more are sent as binary data, because JSON has a limit (4 MiB by default) and takes the server long.
_MOST_IN_JSON = 50_000


def infer(
    model: Annotated[str, typer.Argument(help="Model, `name` or `name@version`.")],
    data: Annotated[
        str, typer.Argument(metavar="INPUT", help='.npz, .npy or .json file, or inline JSON: {"x": [[1, 2]]}.')
    ],
    url: Annotated[str, typer.Option(help="Where it is served.")] = "http://127.0.0.1:8000",
    output: Annotated[Path | None, typer.Option(help="Write the outputs to this .npz file.")] = None,
    timeout: Annotated[float, typer.Option(callback=seconds, help="Seconds to wait for the answer.")] = 30,
) -> None:
    """Send one request and print the outputs as JSON; who answered goes to stderr.

    A token is taken from the environment, ENGINEHOUSE_TOKEN.
    """
    if output is not None:
        check_output(output, "--output")
    name, _, version = model.partition("@")
    path = f"{url.rstrip('/')}/v2/models/{name}" + (f"/versions/{version}" if version else "")
    document, _ = _call(path, None, timeout)
    wanted = {spec["name"]: f"{spec['name']}: {spec['datatype']}{spec['shape']}" for spec in document.get("inputs", ())}
    if not wanted:
        raise InvalidInput(f"{path} answered {reprlib.repr(document)}; is --url an enginehouse?")
    for spec in (*document["inputs"], *document.get("outputs", ())):
        if spec["datatype"] in BINARY_ONLY:
            raise InvalidInput(
                f"{spec['name']!r} of {name!r} is {spec['datatype']}, which has no JSON form, and `infer` sends JSON; "
                "ask in Python: enginehouse.Client().infer(MODEL, {NAME: array})"
            )
    values = read_inputs(data, wanted)
    given = "INPUT" if is_inline(data) else data
    arrays = {spec["name"]: _array(spec, values, given) for spec in document["inputs"]}
    if unknown := sorted(set(values) - set(wanted)):
        raise InvalidInput(
            f"{given} has {', '.join(unknown)}, which are no inputs; {name!r} wants {', '.join(wanted.values())}"
        )
    body, extra = _body(document["inputs"], arrays)
    answer, headers = _call(f"{path}/infer", body, timeout, extra)
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


def _array(spec: dict[str, Any], values: dict[str, Any], given: str) -> np.ndarray:
    name, wanted = spec["name"], f"{spec['datatype']}{spec['shape']}"
    if name not in values:
        have = f", but {', '.join(values)}" if values else ""
        raise InvalidInput(f"{given} has no {name!r}{have}; the model wants {wanted}")
    try:
        array = np.asarray(values[name])
    except ValueError as error:
        raise InvalidInput(f"input {name!r}: {error}; the model wants {wanted}") from None
    if array.dtype.kind not in "biufSU":
        raise InvalidInput(f"input {name!r} has dtype {array.dtype}, which cannot be sent; the model wants {wanted}")
    if array.dtype.kind == "S":
        try:
            array = np.char.decode(array, "utf-8")
        except UnicodeDecodeError:
            raise InvalidInput(f"input {name!r} holds bytes that are no UTF-8 text, which JSON cannot carry") from None
    return array


def _body(specs: list[dict[str, Any]], arrays: dict[str, np.ndarray]) -> tuple[bytes, dict[str, str]]:
    """The body of the request and its headers: as JSON, or with binary data where there is much."""
    tensors, payloads = [], []
    for spec in specs:
        array = arrays[spec["name"]]
        tensor = {"name": spec["name"], "datatype": spec["datatype"], "shape": array.shape}
        payload = _packed(spec["datatype"], array) if array.size > _MOST_IN_JSON else None
        if payload is None:
            # As it was given: the server checks every value against the model's datatype and names the one at fault.
            tensor["data"] = array.ravel().tolist()
        else:
            tensor["parameters"] = {"binary_data_size": len(payload)}
            payloads.append(payload)
        tensors.append(tensor)
    text = json.dumps({"inputs": tensors}).encode()
    if not payloads:
        return text, {"Content-Type": "application/json"}
    return b"".join([text, *payloads]), {"Inference-Header-Content-Length": str(len(text))}


def _packed(kind: str, array: np.ndarray) -> bytes | memoryview | None:
    """`array` as binary data of this datatype; None where a value would become another one."""
    dtype = DTYPES[kind]
    if dtype.hasobject or array.dtype.kind == "U":
        return to_bytes(array) if dtype.hasobject and array.dtype.kind == "U" else None
    if array.dtype.kind == "b" or dtype.kind == "b" or (dtype.kind in "iu" and array.dtype.kind == "f"):
        return to_bytes(array) if array.dtype == dtype else None
    with np.errstate(all="ignore"):
        cast = array.astype(dtype)
    # Numbers are rounded to a float type, as the server rounds those of JSON.
    same = np.isfinite(cast) == np.isfinite(array) if dtype.kind == "f" else cast == array
    return to_bytes(cast) if same.all() else None


def _call(
    url: str, body: bytes | None, timeout: float, headers: dict[str, str] | None = None
) -> tuple[dict[str, Any], dict[str, str]]:
    try:
        request = urllib.request.Request(url, body, headers or {})
        for name, value in own_token().items():
            # Nobody else's, if it leads there.
            request.add_unredirected_header(name, value)
    except ValueError:
        raise InvalidInput(f"{url!r} is no URL; --url is such as http://127.0.0.1:8000") from None
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:
            return _object(url, response.read()), {key.lower(): value for key, value in response.headers.items()}
    except urllib.error.HTTPError as error:
        raise InvalidInput(f"{url} answered {error.code}: {_error_of(error.read())}") from None
    except http.client.HTTPException as error:
        raise InvalidInput(f"{url} speaks no HTTP that is understood ({error!r}); is --url an enginehouse?") from None
    except OSError as error:
        reason = getattr(error, "reason", None) or error
        if isinstance(reason, TimeoutError):
            raise DeadlineExceeded(f"{url} has not answered within {timeout:g} s; --timeout waits longer") from None
        raise NoBackend(f"{url}: {reason}; is `enginehouse serve` running there? --url asks elsewhere") from None


def _object(url: str, body: bytes) -> dict[str, Any]:
    try:
        document = json.loads(body)
    except ValueError:
        document = None
    if not isinstance(document, dict):
        kind = recognised(body)
        raise InvalidInput(f"{url} answered {kind.name if kind else 'no JSON object'}; is --url an enginehouse?")
    return document


def _error_of(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return body[:200].decode(errors="replace")
