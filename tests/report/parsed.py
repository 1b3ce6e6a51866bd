"""A page as a browser reads it, and what the usual one has, for the tests to ask."""

from __future__ import annotations

from collections import Counter
from html.parser import HTMLParser

SECTIONS = ["stages", "training", "layers", "answers", "tasks", "artifacts", "reproduce"]
CHARTS = [
    "chart-kl",
    "chart-size",
    "chart-time",
    "chart-memory",
    "chart-curve1",
    "chart-curve3",
    "chart-widths0",
    "chart-influence0",
    "chart-places0",
    "chart-errors2",
    "chart-outputs2",
]
VOID = {"meta", "link", "br", "hr", "img", "input"}


class Page(HTMLParser):
    """Tags in order, their attributes, text by tag; unbalanced tags are an error."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.ids: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.ids += [value or "" for name, value in attrs if name == "id"]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append((self.open[-1] if self.open else "", data))

    def all_text(self) -> str:
        return " ".join(data for tag, data in self.text if tag != "style")
