"""What is measured: a model on a server, the requests it is asked with, and the right answers to them."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import psutil

from enginehouse.contract.config.access import own_token
from enginehouse.contract.errors import InvalidInput, NoBackend, ParityFailed
from enginehouse.contract.parity import Limits
from enginehouse.contract.tensors import Tensors
from enginehouse.tools.bench import answers
from enginehouse.tools.bench.answers import Expected
from enginehouse.tools.bench.limit import Engines
from enginehouse.tools.bench.samples import Samples

#: Different requests that are sent, and how many of them a probe sends.
REQUESTS = 64
PROBES = 8
_TIMEOUT_S = 60.0
#: Of this machine or of one that is reached directly, as by the load generators.
_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True, slots=True)
class Message:
    """One request, ready to send, and the right answer of each backend."""

    body: bytes
    headers: Mapping[str, str]
    expected: Mapping[str, Expected]


@dataclass(slots=True)
class Subject:
    """A model that is served at `url` (of its `infer` endpoint) by `processes` of this host.

    `engines` are this process's own engines, by the backend that they check, and `limits` how far each may be off.
    """

    url: str
    samples: Samples
    max_rows: int
    processes: Sequence[psutil.Process]
    engines: Mapping[str, Engines]
    limits: Mapping[str, Limits]
    as_json: bool = False
    seen: set[str] = field(default_factory=set)
    _messages: dict[tuple[int, int], Message] = field(default_factory=dict)

    def request(self, rows: int, number: int = 0) -> Tensors:
        """Request `number` of `rows` rows."""
        return self.samples.request(number * rows, rows)

    def message(self, rows: int, number: int = 0) -> Message:
        """Request `number` of `rows` rows, encoded, with its right answers; computed once."""
        key = (rows, number)
        if key not in self._messages:
            request = self.request(rows, number)
            expected = {
                name: Expected(engines.infer(request), self.limits[name]) for name, engines in self.engines.items()
            }
            self._messages[key] = Message(*answers.encode(request, self.as_json), expected)
        return self._messages[key]

    def messages(self, rows: int) -> list[Message]:
        """The different requests of so many rows: as many as there are, up to REQUESTS rows in all."""
        different = min(REQUESTS, self.samples.rows)
        return [self.message(rows, number) for number in range(max(1, different // rows))]

    def probe(self, rows: int) -> None:
        """Send a few requests one by one and compare the answers. Raises ParityFailed for one that is wrong.

        Raises NoBackend when the server does not answer, and InvalidInput when it refuses.
        """
        for number, message in enumerate(self.messages(rows)[:PROBES]):
            content, headers = ask(self.url, message.body, message.headers)
            self.seen.add(answers.backend_of(headers))
            if fault := answers.fault(content, headers, message.expected):
                raise ParityFailed(f"{self.url} gave a wrong answer to request {number} of {rows} rows: {fault}")


def ask(url: str, body: bytes, headers: Mapping[str, str]) -> tuple[bytes, dict[str, str]]:
    """POST once: content and headers of the answer. Raises InvalidInput with what the server said, or NoBackend."""
    try:
        request = urllib.request.Request(url, body, {**headers, **own_token()})
        with _opener.open(request, timeout=_TIMEOUT_S) as response:
            return response.read(), dict(response.headers.items())
    except urllib.error.HTTPError as error:
        raise InvalidInput(f"{url} answered {error.code}: {error.read()[:200].decode(errors='replace')}") from None
    except ValueError as error:
        raise InvalidInput(f"{url!r} is no URL ({error}); --url is such as http://127.0.0.1:8000") from None
    except OSError as error:
        raise NoBackend(f"{url}: {getattr(error, 'reason', None) or error}; is that where it is served?") from None
