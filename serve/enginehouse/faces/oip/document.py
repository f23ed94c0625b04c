"""The JSON of a request: parsed in one call, during which all other requests wait, so what is in it has limits.

Milliseconds that orjson takes, and bytes of memory that come of a byte, measured with 4 MiB of each (Python 3.11, one
core of a virtual machine at 2.x GHz, CPU time):

    numbers as 0.123456             4 ms/MiB    x 5      arrays and objects as [1], {}, {"":0}    20 to 27 ms/MiB  x 28
    numbers of one digit            7 ms/MiB    x 8      numbers beside one NaN, by json.loads          22 ms/MiB  x 8
    strings of two characters      12 ms/MiB    x 14

So the limit of 4 MiB (`RouterConfig.max_json_bytes`) is some 16 ms for usual numbers, and with the limits below 40 ms
and some 60 MiB at worst.
"""

from __future__ import annotations

import functools
import json
from typing import Any

import numpy as np
import orjson

from enginehouse.contract.elements import Work, json_text
from enginehouse.contract.errors import InvalidInput, RequestTooLarge
from enginehouse.contract.tensors import Signature
from enginehouse.faces.oip import foreign

MAX_DEPTH = 100
#: Up to so many bytes, JSON is parsed without others being let in first: a millisecond or two.
AT_ONCE_BYTES = 1 << 17
#: Arrays and objects of one text, its strings, names included, and bytes of one with NaN or infinities.
MAX_ARRAYS, MAX_STRINGS, NON_FINITE_BYTES = 1 << 17, 1 << 18, 1 << 20


def parsed(text: memoryview, signature: Signature) -> Work[dict[str, Any]]:
    """The object that `text` is. Raises InvalidInput, with an example for `signature` where it is something else."""
    is_long = len(text) > AT_ONCE_BYTES
    if is_long:
        _check_counts(text)
        yield None
    try:
        document = (yield functools.partial(orjson.loads, text)) if is_long else orjson.loads(text)
    except orjson.JSONDecodeError as error:
        parse = functools.partial(_with_non_finite, bytes(text), str(error))
        try:
            document = (yield parse) if is_long else parse()
        except InvalidInput as fault:
            raise InvalidInput(foreign.explanation(text, signature) or str(fault)) from None
    if not isinstance(document, dict):
        raise InvalidInput(
            f"the request is the JSON value {json_text(document)}; send an object with 'inputs', as "
            f"{foreign.example(signature)}"
        )
    if is_long:
        yield functools.partial(_check_depth, document)
    else:
        _check_depth(document)
    return document


def _check_counts(text: memoryview) -> None:
    """Raise RequestTooLarge for what would take many times as long as numbers do."""
    characters = np.frombuffer(text, np.uint8)
    quotes = characters == ord('"')
    # Those within strings are escaped.
    strings = (np.count_nonzero(quotes) - np.count_nonzero(quotes[1:] & (characters[:-1] == ord("\\")))) // 2
    arrays = np.count_nonzero(characters == ord("[")) + np.count_nonzero(characters == ord("{"))
    if arrays > MAX_ARRAYS:
        raise RequestTooLarge(
            f"the request's JSON has {arrays} arrays and objects, and {MAX_ARRAYS} is the limit; 'data' may be flat, "
            "whatever the shape is, or follow as binary data"
        )
    if strings > MAX_STRINGS:
        raise RequestTooLarge(
            f"the request's JSON has {strings} strings, and {MAX_STRINGS} is the limit; send fewer rows in a request"
        )


def _with_non_finite(text: bytes, fault: str) -> Any:
    """Parse JSON with NaN and infinities, which Triton and tritonclient write and orjson refuses."""
    if b"NaN" in text or b"Infinity" in text:
        if len(text) > NON_FINITE_BYTES:
            raise RequestTooLarge(
                f"JSON of {len(text)} bytes with NaN or infinities, and {NON_FINITE_BYTES} is the limit of such; send "
                "the tensors as binary data"
            )
        try:
            document = json.loads(text)
            # Refuses what orjson would not have parsed either, such as lone surrogates and integers beyond 64 bits.
            orjson.dumps(document)
            return document
        except (ValueError, TypeError, RecursionError) as other:
            raise InvalidInput(f"the request is not valid JSON: {other}") from None
    raise InvalidInput(f"the request is not valid JSON: {fault}") from None


def _check_depth(document: dict[str, Any]) -> None:
    """Raise InvalidInput for nesting deeper than MAX_DEPTH; `data` is left out, since its shape is checked later."""
    nested: list[Any] = [document]
    depth = 0
    while nested:
        depth += 1
        if depth > MAX_DEPTH:
            raise InvalidInput(f"the request's JSON is nested more than {MAX_DEPTH} deep")
        children: list[Any] = []
        for value in nested:
            if isinstance(value, dict):
                children += [item for key, item in value.items() if not (depth == 3 and key == "data")]
            elif isinstance(value, list):
                children += value
        nested = [value for value in children if isinstance(value, dict | list)]
