"""Generate the pages of the command lines, with a description of each command and all of its flags."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from docstring_parser import parse

from contrastive_core.app.cli import Verb
from contrastive_core.app.flags import Flags
from contrastive_core.app.help import placeholder

Flag = tuple[str, str, str]
"""Flag with a placeholder for its value, default, and description."""


def page(prog: str, name: str, verb: Verb) -> str:
    """Return the page of one command."""
    module, _, attribute = verb.target.partition(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), attribute)
    flags = Flags(function)
    usage = " ".join([prog, name, *(key.upper() for key in flags.required), "[options]"])
    docs = parse(inspect.getdoc(function) or "")
    parts = [f"# {name}", f"```text\n{usage}\n```", docs.short_description or "", docs.long_description or ""]
    groups: dict[str, list[Flag]] = {}
    for group, flag in _flags(function, flags):
        groups.setdefault(group, []).append(flag)
    for group, group_flags in groups.items():
        parts += [f"## {group}", _table(group_flags)]
    parts.append(f"In Python: `{prog.replace('-', '_')}.{attribute}`, with the same arguments.")
    return "\n\n".join(filter(None, parts)) + "\n"


def overview(prog: str, verbs: Mapping[str, Verb]) -> str:
    """Return the table of commands with links to their pages."""
    rows = [f"| [`{prog} {name}`](commands/{name}.md) | {_sentence(verb.help)} |" for name, verb in verbs.items()]
    return "\n".join(["| command | |", "|---|---|", *rows])


def _flags(function: Callable[..., Any], flags: Flags) -> Iterator[tuple[str, Flag]]:
    """Yield every flag with the heading of its group."""
    hints, texts = typing.get_type_hints(function), _texts(function)
    for name, parameter in inspect.signature(function).parameters.items():
        kind, text = hints[name], texts.get(name, "")
        if dataclasses.is_dataclass(kind):
            default = None if parameter.default is parameter.empty else parameter.default
            title = _sentence(text or (inspect.getdoc(kind) or name).partition("\n")[0]).rstrip(".")
            for key, inner, value, about in _fields(name, kind, default):
                yield title, (_written(flags, key, inner), f"`{_plain(value)}`", _sentence(about))
        elif parameter.default is parameter.empty:
            yield "Required arguments", (f"`{name.upper()}`", "", _sentence(text))
        else:
            yield "Options", (_written(flags, name, kind), f"`{_plain(parameter.default)}`", _sentence(text))


def _fields(prefix: str, kind: Any, instance: Any) -> Iterator[tuple[str, Any, Any, str]]:
    """Yield key, type, default and text of each field of a dataclass, including the fields of nested dataclasses."""
    hints, texts = typing.get_type_hints(kind), _texts(kind)
    for field in dataclasses.fields(kind):
        key, default = f"{prefix}.{field.name}", getattr(instance, field.name, None)
        if dataclasses.is_dataclass(hints[field.name]):
            yield from _fields(key, hints[field.name], default)
        elif field.init:
            yield key, hints[field.name], default, texts.get(field.name, "")


def _written(flags: Flags, key: str, kind: Any) -> str:
    """Format a flag as on a command line, such as `--[no-]flip` or `--batch-size N`, by its short name."""
    name = flags.short_name(key).replace("_", "-")
    return f"`--[no-]{name}`" if kind is bool else f"`--{name} {placeholder(kind)}`"


def _texts(target: Any) -> dict[str, str]:
    """Return the text of every argument or attribute in a docstring, each in one line."""
    parameters = parse(inspect.getdoc(target) or "").params
    return {each.arg_name: " ".join((each.description or "").split()) for each in parameters}


def _sentence(text: str) -> str:
    text = text[:1].upper() + text[1:]
    return text if not text or text[-1] in ".?!" else f"{text}."


def _plain(value: Any) -> str:
    """Format a value as on a command line."""
    if value is None or isinstance(value, bool):
        return {None: "none", True: "on", False: "off"}[value]
    if isinstance(value, list | tuple):
        return ",".join(map(_plain, value)) or "none"
    return str(value) if str(value) else "none"


def _table(flags: list[Flag]) -> str:
    rows = [" | ".join(cell.replace("|", r"\|") for cell in flag) for flag in flags]
    return "\n".join(["| flag | default | |", "|---|---|---|", *(f"| {row} |" for row in rows)])
