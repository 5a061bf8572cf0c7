"""A report as a reader gets it."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser


@dataclass
class Page(HTMLParser):
    """What a reader gets: tables, pictures, texts; and all that a browser would fetch."""

    tables: dict[str, list[list[str]]] = field(default_factory=dict)
    figures: list[str] = field(default_factory=list)
    tags: set[str] = field(default_factory=set)
    fetched: list[str] = field(default_factory=list)
    text: str = ""

    def __post_init__(self) -> None:
        super().__init__()
        self._cell = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        told = dict(attrs)
        self.tags.add(tag)
        self.fetched += [told[name] or "" for name in ("src", "href", "xlink:href", "data") if name in told]
        if tag == "table":
            self.tables[told["id"] or ""] = []
        elif tag == "figure":
            self.figures.append(told["id"] or "")
        elif tag == "tr":
            list(self.tables.values())[-1].append([])
        elif tag in ("td", "th"):
            list(self.tables.values())[-1][-1].append("")
        self._cell = tag in ("td", "th")

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._cell:
            list(self.tables.values())[-1][-1][-1] += data

    def handle_endtag(self, tag: str) -> None:
        self._cell = False
