"""What may be shown, logged or sent of a text that others wrote or that quotes where things are."""

from __future__ import annotations

import logging
import re
import unicodedata

#: In a URL: who asks and with what word, up to the last @ before its path; and what comes after the path, such as a
#: signature. They may have any character but those that end a URL in a sentence. Azure's have a container before the @.
_USER = re.compile(r"(?<=://)(?<!abfs://)(?<!abfss://)[^/\s'\"<>]*@")
_QUERY = re.compile(r"(://[^\s'\"<>?]*)\?[^\s'\"<>]*")
#: A URL, or a path of two parts and more, that is none of our own server's.
_PLACE = re.compile(r"[A-Za-z][\w+.-]*://[^\s'\"<>,;]+|(?<![\w/.])/(?!v2\b)[\w.@+-]+/[^\s'\"<>,;:]*")


def redacted(text: str) -> str:
    """`text`, a URL or what quotes some, without the credentials in them: for whatever is shown, logged or sent."""
    if "://" not in text:
        return text
    return _QUERY.sub(r"\1?***", _USER.sub("***@", text))


def placeless(text: str) -> str:
    """`text` without where things are: for clients, who need not know stores, folders and hosts."""
    return _PLACE.sub("(a place)", text)


def plain(text: str, lines: bool = False) -> str:
    """`text` with nothing in it that a terminal obeys or that ends a line; with `lines`, line feeds stay."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() or (lines and each == "\n") else _escaped(each) for each in text)


def _escaped(character: str) -> str:
    # Spaces of other kinds are harmless, and names in other scripts may be joined by what is not printed.
    if unicodedata.category(character) == "Zs" or character in "\u200c\u200d":
        return character
    return character.encode("unicode_escape").decode()


class OneLine(logging.Filter):
    """Has each record of a logger be one line, but for its traceback, and show no credentials."""

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        shown = plain(
            redacted(message),
        )
        if shown != message:
            record.msg, record.args = shown, ()
        return True
