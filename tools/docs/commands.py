"""Pages of the command lines: what each command does, and its flags with type, default and meaning."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from docstring_parser import parse

from contrastive_core.app.cli import Verb
from contrastive_core.app.flags import in_words

Flag = tuple[str, str, str, str]
"""Name, type, default and text."""


def page(prog: str, name: str, verb: Verb) -> str:
    """The page of one command."""
    module, _, attribute = verb.target.partition(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), attribute)
    required = [p.name for p in inspect.signature(function).parameters.values() if p.default is p.empty]
    usage = " ".join([prog, name, *(word.upper() for word in required), "[options]"])
    docs = parse(inspect.getdoc(function) or "")
    parts = [f"# {name}", f"```text\n{usage}\n```", docs.short_description or "", docs.long_description or ""]
    groups: dict[str, list[Flag]] = {}
    for group, flag in _flags(function):
        groups.setdefault(group, []).append(flag)
    for group, flags in groups.items():
        parts += [f"## {group}", _table(flags)]
    parts.append(f"In Python: `{prog.replace('-', '_')}.{attribute}`, with the same arguments.")
    return "\n\n".join(filter(None, parts)) + "\n"


def overview(prog: str, verbs: Mapping[str, Verb]) -> str:
    """The table of commands with links to their pages."""
    rows = [f"| [`{prog} {name}`](commands/{name}.md) | {verb.help} |" for name, verb in verbs.items()]
    return "\n".join(["| command | |", "|---|---|", *rows])


def _flags(function: Callable[..., Any]) -> Iterator[tuple[str, Flag]]:
    """Every flag with the heading that it stands under."""
    hints, texts = typing.get_type_hints(function), _texts(function)
    for parameter in inspect.signature(function).parameters.values():
        kind, name = hints[parameter.name], parameter.name
        default = None if parameter.default is parameter.empty else parameter.default
        if dataclasses.is_dataclass(kind):
            title = texts.get(name, name).rstrip(".")
            yield from ((f"{title[:1].upper()}{title[1:]}", flag) for flag in _fields(name, kind, default))
        else:
            text = "required" if parameter.default is parameter.empty else f"`{_plain(default)}`"
            yield "Arguments", (name, in_words(kind), text, texts.get(name, ""))


def _fields(prefix: str, kind: Any, value: Any) -> Iterator[Flag]:
    """The fields of a dataclass behind a dot, those of a field that is one behind another."""
    hints, texts = typing.get_type_hints(kind), _texts(kind)
    for field in dataclasses.fields(kind):
        default = getattr(value, field.name) if value is not None else field.default
        if dataclasses.is_dataclass(hints[field.name]):
            yield from _fields(f"{prefix}.{field.name}", hints[field.name], default)
        else:
            text = texts.get(field.name, "")
            yield f"{prefix}.{field.name}", in_words(hints[field.name]), f"`{_plain(default)}`", text


def _texts(documented: Any) -> dict[str, str]:
    """The text of every argument or attribute in a docstring, in one line."""
    found = parse(inspect.getdoc(documented) or "").params
    return {each.arg_name: " ".join((each.description or "").split()) for each in found}


def _plain(value: Any) -> str:
    """A value as it stands in a configuration file."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"[{', '.join(map(_plain, value))}]" if isinstance(value, list | tuple) else str(value)


def _table(flags: list[Flag]) -> str:
    rows = [[f"`--{name}`", kind, default, text] for name, kind, default, text in flags]
    cells = [" | ".join(cell.replace("|", r"\|") for cell in row) for row in rows]
    return "\n".join(["| flag | type | default | |", "|---|---|---|---|", *(f"| {row} |" for row in cells)])
