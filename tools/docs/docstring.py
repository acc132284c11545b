"""Docstrings as Markdown: sections become lists, examples and formulas code; the rest stays as it was written."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator

_SECTION = re.compile(r"(Args|Attributes|Returns|Raises|Yields):$")
_ITEM = re.compile(r"(\*{0,2}[\w., ]+?)(?: \(.*?\))?: (.*)")
_ROLE = re.compile(r":\w+:`~?([^`]+)`")
_NAMED = ("Args", "Attributes", "Raises")


def to_markdown(text: str) -> str:
    """The docstring of a function, class or module."""
    return lines_to_markdown(inspect.cleandoc(text).splitlines())


def lines_to_markdown(lines: list[str]) -> str:
    """As `to_markdown`, of lines without the indentation of the source; they are used up."""
    paragraphs: list[str] = []
    while lines:
        if match := _SECTION.match(lines[0]):
            paragraphs.append(_section(match[1], _indented(lines)))
        elif lines[0].startswith(">>>"):
            paragraphs.append("```pycon\n" + "\n".join(_until_blank(lines)) + "\n```")
        elif lines[0].startswith("    "):
            paragraphs.append("```text\n" + inspect.cleandoc("\n".join(_indented(lines, first=False))) + "\n```")
        elif lines[0]:
            paragraphs.append(_inline("\n".join(_until_blank(lines))))
        else:
            lines.pop(0)
    return "\n\n".join(paragraphs)


def items(text: str, section: str) -> dict[str, str]:
    """What a docstring says in one line of each argument ("Args") or field ("Attributes") it describes."""
    lines = inspect.cleandoc(text).splitlines()
    while lines:
        if lines[0] == f"{section}:":
            return dict(_pairs(_indented(lines)))
        lines.pop(0)
    return {}


def _section(name: str, body: list[str]) -> str:
    title = {"Args": "Arguments"}.get(name, name)
    pairs = list(_pairs(body)) if name in _NAMED else []
    if not pairs:
        return f"**{title}**: {_inline(' '.join(line.strip() for line in body if line.strip()))}"
    return "\n".join([f"**{title}**", "", *(f"- `{item}`: {text}" for item, text in pairs)])


def _pairs(body: list[str]) -> Iterator[tuple[str, str]]:
    """Name and text of every item; a deeper indentation goes on with the one before."""
    found: list[list[str]] = []
    for line in body:
        match = _ITEM.fullmatch(line)
        if match and not line.startswith(" "):
            found.append([match[1], match[2]])
        elif found and line.strip():
            found[-1][1] += f" {line.strip()}"
    for name, text in found:
        yield name, _inline(text)


def _indented(lines: list[str], *, first: bool = True) -> list[str]:
    """Take an indented block, below its header if `first`, without its indentation."""
    if first:
        lines.pop(0)
    body = []
    while lines and (not lines[0] or lines[0].startswith("    ")):
        body.append(lines.pop(0))
    return inspect.cleandoc("\n" + "\n".join(body)).splitlines()


def _until_blank(lines: list[str]) -> list[str]:
    taken: list[str] = []
    while lines and lines[0] and not _SECTION.match(lines[0]) and not (taken and lines[0].startswith("    ")):
        taken.append(lines.pop(0))
    return taken


def _inline(text: str) -> str:
    """Roles and double backticks as Markdown writes them; brackets of shapes are no links."""
    return _ROLE.sub(r"`\1`", text).replace("``", "`")
