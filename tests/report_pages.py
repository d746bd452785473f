"""A report page taken apart: its elements, what it says each figure is, the document that it holds."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Final

VOID: Final = frozenset({"meta", "link", "br", "hr", "img", "input"})


@dataclass
class Element:
    """An element with its attributes and all the text in it; ``within`` are those that it is in."""

    tag: str
    attributes: Mapping[str, str]
    within: tuple[Element, ...]
    text: str = ""

    def __getitem__(self, name: str) -> str:
        return self.attributes[name]

    def is_in(self, **attributes: str) -> bool:
        return any(
            all(each.attributes.get(name.rstrip("_").replace("_", "-")) == value for name, value in attributes.items())
            for each in self.within
        )


@dataclass
class Page:
    """The elements of a page in their order."""

    source: str
    elements: list[Element] = field(default_factory=list)

    def having(self, attribute: str, **attributes: str) -> list[Element]:
        """Elements that have ``attribute``, and these attributes with these values."""
        return [
            each
            for each in self.elements
            if attribute in each.attributes
            and all(
                each.attributes.get(name.rstrip("_").replace("_", "-")) == value for name, value in attributes.items()
            )
        ]

    def tagged(self, tag: str) -> list[Element]:
        return [each for each in self.elements if each.tag == tag]

    def chart(self, name: str) -> list[Element]:
        """What is in the chart of that name."""
        return [each for each in self.elements if each.is_in(class_="chart", data_name=name)]

    @property
    def document(self) -> Any:
        (held,) = [each for each in self.elements if each.attributes.get("id") == "ftplan-json"]
        return json.loads(held.text)

    @property
    def files(self) -> dict[str, str]:
        """The files that can be saved from it, as they are saved."""
        found = {}
        for pre in self.tagged("pre"):
            exact = pre.attributes.get("data-exact")
            found[pre["aria-label"]] = json.loads(exact) if exact else pre.text
        return found


class _Parser(HTMLParser):
    def __init__(self, page: Page) -> None:
        super().__init__()
        self.page = page
        self.open: list[Element] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), (tag, attrs)
        made = Element(tag, {name: value or "" for name, value in attrs}, tuple(self.open))
        self.page.elements.append(made)
        if tag not in VOID:
            self.open.append(made)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open[-1].tag == tag, f"</{tag}> closes <{self.open[-1].tag}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        for element in self.open:
            element.text += data


def parsed(source: str) -> Page:
    """The page; an AssertionError where its tags do not match."""
    page = Page(source)
    parser = _Parser(page)
    parser.feed(source)
    parser.close()
    assert not parser.open, parser.open
    return page


def read(file: Path) -> Page:
    return parsed(file.read_text("utf-8"))


def value_at(document: Any, path: str) -> Any:
    """What the document holds at a path such as ``estimate.terms.0.bytes``."""
    for part in path.split("."):
        document = document[int(part)] if isinstance(document, list) else document[part]
    return document


def sums(marks: Iterator[Element] | list[Element], by: str, of: str = "data-bytes") -> dict[str, int]:
    """The figures of marks by another of their attributes, summed."""
    found: dict[str, int] = {}
    for mark in marks:
        if of in mark.attributes:
            found[mark[by]] = found.get(mark[by], 0) + int(mark[of])
    return found
