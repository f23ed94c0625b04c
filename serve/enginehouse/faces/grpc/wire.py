"""The wire form of inference messages, with the raw tensors apart: protobuf would copy them, all at once.

A ModelInferRequest has them in field 7, a ModelInferResponse in field 6; both messages have nothing after them that
would have to be. What else a message has is left to protobuf.
"""

from __future__ import annotations

from collections.abc import Sequence

from enginehouse.contract.errors import InvalidInput

#: Fields at the top of a request; each tensor has two.
MOST_FIELDS = 10_000
_RAW_INPUT, _RAW_OUTPUT, _INFER_RESPONSE = 7 << 3 | 2, 6 << 3 | 2, 2 << 3 | 2


def split(data: bytes) -> tuple[bytes, list[memoryview]]:
    """A serialized ModelInferRequest without its raw tensors, and these, as views. Raises InvalidInput."""
    view = memoryview(data)
    rest: list[memoryview] = []
    raw: list[memoryview] = []
    at = begin = 0
    for _ in range(MOST_FIELDS):
        if at >= len(data):
            break
        start = at
        tag, at = _varint(data, at)
        match tag & 7:
            case 2:
                length, at = _varint(data, at)
                if tag == _RAW_INPUT:
                    rest.append(view[begin:start])
                    raw.append(view[at : at + length])
                    begin = at + length
                at += length
            case 0:
                _, at = _varint(data, at)
            case 1:
                at += 8
            case 5:
                at += 4
            case _:
                raise InvalidInput(f"the message is no ModelInferRequest: byte {start} begins no field")
    else:
        raise InvalidInput(f"the message has more than {MOST_FIELDS} fields")
    if at != len(data):
        raise InvalidInput(f"the message is no ModelInferRequest: its last field ends {at - len(data)} bytes behind it")
    rest.append(view[begin:])
    return b"".join(rest), raw


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """The number at `at`, and where the next thing is."""
    value = shift = 0
    for place in range(at, min(at + 10, len(data))):
        byte = data[place]
        value |= (byte & 127) << shift
        if byte < 128:
            return value, place + 1
        shift += 7
    raise InvalidInput(f"the message is no ModelInferRequest: it ends in a number at byte {at}")


def joined(head: bytes, raw: Sequence[Sequence[bytes | memoryview]]) -> bytes:
    """A serialized ModelInferResponse: `head` with all but the raw tensors, of which each is in pieces."""
    parts: list[bytes | memoryview] = [head]
    for pieces in raw:
        parts.append(_field(_RAW_OUTPUT, sum(map(len, pieces))))
        parts += pieces
    return b"".join(parts)


def streamed(response: bytes) -> bytes:
    """A serialized ModelStreamInferResponse with this ModelInferResponse."""
    return _field(_INFER_RESPONSE, len(response)) + response


def _field(tag: int, length: int) -> bytes:
    encoded = bytearray([tag])
    while length > 127:
        encoded.append(length & 127 | 128)
        length >>= 7
    encoded.append(length)
    return bytes(encoded)
