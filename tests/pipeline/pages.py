"""A report taken apart, to see what a person reads in it."""

from __future__ import annotations

from html.parser import HTMLParser

from enginehouse.contract.manifest import Manifest
from enginehouse_build.report import render

#: Elements that have no end tag.
VOID = {"meta", "br", "link", "img", "input", "hr"}
#: Elements that a person sees apart from what stands before them.
APART = {"td", "th", "dt", "dd", "li", "br", "small"}


class Page(HTMLParser):
    """A page taken apart: its elements with their attributes, its text, and the elements that were not closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attributes}))
        self.words.append(" " if tag in APART else "")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attributes}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)

    @property
    def text(self) -> str:
        """What a person reads, with single spaces."""
        return " ".join("".join(self.words).split())


def read(manifest: Manifest) -> str:
    return Page(render(manifest)).text
