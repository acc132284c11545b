"""An HTML page as a browser would see it."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

from PIL import Image

_BOXES = {"wide", "panels"}  # classes of elements that scroll, or whose content shrinks to the page
_VOID = {"meta", "img", "br", "link", "input", "hr", "base"}


class Page(HTMLParser):
    """Elements, attributes, text and images by section; every tag must be closed by its own end tag."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.classes: list[set[str]] = []
        self.loose: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.words: list[str] = []
        self.heading = ""
        self.images: dict[str, list[Image.Image]] = {}
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        classes = set((dict(attrs).get("class") or "").split())
        is_wide = tag == "svg" or (tag == "table" and "settings" not in classes) or "picture" in classes
        if is_wide and not any(outer & _BOXES for outer in self.classes):
            self.loose.append(f"{tag} {' '.join(sorted(classes))}")
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag == "img":
            source = dict(attrs)["src"] or ""
            kind, _, data = source.removeprefix("data:image/").partition(";base64,")
            picture = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
            picture.load()
            assert picture.format == kind.upper()
            assert dict(attrs)["alt"]
            self.images.setdefault(self.heading, []).append(picture)
        if tag not in _VOID:
            self.open.append(tag)
            self.classes.append(classes)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self.classes.pop()

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "h2":
            self.heading = data
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def read(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


def assert_fits_a_phone(page: Page) -> None:
    """Tables, curves and pictures are in boxes that scroll or shrink, so that the page never scrolls sideways."""
    assert page.loose == []
    assert "table" in page.tags
    assert "svg" in page.tags


def assert_stands_alone(page: Page, source: str) -> None:
    """Nothing is loaded from the network, and no identifier occurs twice or is missing."""
    without_pictures = re.sub(r"data:image/\w+;base64,[\w+/=\s]+", "", source)
    assert not re.search(r"https?:|//|@import|javascript|<script|<link|<iframe|<object", without_pictures)
    for tag, name, value in page.attributes:
        if name in ("src", "href", "xlink:href", "data", "action", "srcset", "poster"):
            assert value.startswith(("data:image/",) if tag in ("img", "image") else ("#",)), (tag, name, value)
    inner = re.findall(r"url\(([^)]*)\)", source)
    identifiers = {value for _, name, value in page.attributes if name == "id"}
    assert all(target.startswith("#") and target[1:] in identifiers for target in inner)
    references = {value[1:] for tag, name, value in page.attributes if name == "href" and tag != "image"}
    assert references <= identifiers
    assert len(identifiers) == sum(name == "id" for _, name, _ in page.attributes)
