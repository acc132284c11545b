"""Generate the text of `prog verb --help`, with the flags that most users need, and of `--help-all`."""

from __future__ import annotations

import dataclasses
import inspect
import re
import shutil
import textwrap
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from contrastive_core.app.flags import Flags, dashed, field_texts, first_sentence, is_switch, plain_text

_INDENT, _WIDEST = 26, 110

_NOTES = (
    "Arguments in capitals can be given in order, or as flags: --data DATA. A nested flag can be shortened to its last "
    "name if that is unambiguous: --seed for --run.seed. A flag that is on or off needs no value: --resume, "
    "--no-resume. Lists are written with commas: --views rgb,flow. Flags override --config."
)


@dataclass(frozen=True)
class _Entry:
    key: str
    kind: Any
    default: Any
    text: str


def help_text(
    prog: str, function: Callable[..., Any], flags: Flags, *, common: Sequence[str] = (), everything: bool = False
) -> str:
    """Return the help text of one verb.

    Args:
        prog: Program and verb.
        function: Function of the verb, or its declaration.
        flags: Flags of the function.
        common: Full or short names of the flags to show; the flags of the function's signature if empty.
        everything: Whether to show all flags and the long description.
    """
    from docstring_parser import parse  # noqa: PLC0415 - needed only for help

    docs = parse(inspect.getdoc(function) or "")
    groups = dict(_groups(function, {param.arg_name: param.description or "" for param in docs.params}))
    if not everything:
        keys = {flags.full_name(name) for name in common} | set(flags.required) if common else set(groups[""][1])
        groups = {
            name: (head, {k: e for k, e in members.items() if k in keys}) for name, (head, members) in groups.items()
        }
    width = min(shutil.get_terminal_size((100, 24)).columns, _WIDEST)
    arguments = [
        name.upper() if name in flags.positional else f"{dashed(name)} {placeholder(flags.types[name])}"
        for name in flags.required
    ]
    lines = [" ".join([f"usage: {prog}", *arguments, "[options]"]), ""]
    parts = [docs.short_description, docs.long_description if everything else None]
    for part in filter(None, parts):
        lines += [*_paragraphs(plain_text(part), width), ""]
    for head, entries in groups.values():
        required_entries = [entry for key, entry in entries.items() if key in flags.required]
        others = [entry for key, entry in entries.items() if key not in flags.required]
        for heading, section in (("arguments:", required_entries), (head or "options:", others)):
            if section:
                lines += [heading]
                for entry in section:
                    lines += _rows(entry, flags, width, everything=everything, required=entry.key in flags.required)
                lines += [""]
    if everything:
        lines += _paragraphs(_NOTES, width)
        lines += _paragraphs(
            "--trust-model-code allows a model folder to run code of other packages when it is opened.", width
        )
    else:
        num_hidden = sum(len(entries) for _, entries in dict(_groups(function, {})).values()) - sum(
            len(entries) for _, entries in groups.values()
        )
        if num_hidden:
            lines += [f"--help-all shows {num_hidden} more flags."]
    lines += _paragraphs(
        "--config FILE reads values from a YAML file; --print-config prints the resulting values in this format.", width
    )
    return "\n".join(lines)


def _groups(function: Callable[..., Any], texts: dict[str, str]) -> Iterator[tuple[str, tuple[str, dict[str, _Entry]]]]:
    """Yield each group of flags with its name ("" for those of the function's signature), heading and flags."""
    hints = typing.get_type_hints(function)
    own: dict[str, _Entry] = {}
    nested: list[tuple[str, tuple[str, dict[str, _Entry]]]] = []
    for name, parameter in inspect.signature(function).parameters.items():
        default = None if parameter.default is parameter.empty else parameter.default
        text = texts.get(name, "")
        if dataclasses.is_dataclass(hints[name]):
            summary = text or (inspect.getdoc(hints[name]) or "").partition("\n")[0]
            head = f"{name}: {first_sentence(plain_text(summary)).rstrip('.')}" if summary else f"{name}:"
            nested.append((name, (head, {e.key: e for e in _fields(name, hints[name], default)})))
        else:
            own[name] = _Entry(name, hints[name], default, text)
    yield "", ("", own)
    yield from nested


def _fields(prefix: str, kind: Any, instance: Any) -> Iterator[_Entry]:
    texts = field_texts(kind)
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if not field.init:
            continue
        key, default = f"{prefix}.{field.name}", getattr(instance, field.name, None)
        if dataclasses.is_dataclass(hints[field.name]):
            yield from _fields(key, hints[field.name], default)
        else:
            yield _Entry(key, hints[field.name], default, texts.get(field.name, ""))


def _rows(entry: _Entry, flags: Flags, width: int, *, everything: bool, required: bool) -> list[str]:
    name = flags.short_name(entry.key).replace("_", "-")
    if entry.key in flags.positional:
        label = f"  {entry.key.upper()}"
    elif is_switch(entry.kind):
        label = f"  --[no-]{name}"
    else:
        label = f"  --{name} {placeholder(entry.kind)}"
    text = plain_text(entry.text)
    if not everything:
        text = first_sentence(text)
    if not entry.text.startswith("`"):  # keep the spelling of a value
        text = text[:1].upper() + text[1:]
    if text and text[-1] not in ".?!":
        text += "."
    default = _value(entry.default)
    if not required and not (default == "none" and "default" in text):  # the text explains this default
        text = f"{text} [{default}]".strip()
    body = textwrap.wrap(text, max(width - _INDENT, 30), break_long_words=False, break_on_hyphens=False)
    if len(label) <= _INDENT - 2 and body:
        return [label.ljust(_INDENT) + body[0], *(" " * _INDENT + line for line in body[1:])]
    return [label, *(" " * _INDENT + line for line in body)]


def placeholder(kind: Any) -> str:
    """Return the placeholder of a type in the help text, such as ``N``, ``PATH`` or ``{sgd,lars}``."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return "{" + ",".join(map(str, inner)) + "}"
    if origin in (typing.Union, types.UnionType):
        parts = [part for part in inner if part is not type(None)]
        if all(typing.get_origin(part) is Literal for part in parts):
            return "{" + ",".join(dict.fromkeys(str(value) for part in parts for value in typing.get_args(part))) + "}"
        return "|".join(dict.fromkeys(map(placeholder, parts)))
    if origin in (list, tuple) and inner:
        first = placeholder(inner[0])
        return f"{first},..." if origin is list or inner[-1] is Ellipsis else ",".join(map(placeholder, inner))
    return {int: "N", float: "X", bool: "{true,false}", str: "TEXT", Path: "PATH"}.get(kind, "VALUE")


def _value(default: Any) -> str:
    if isinstance(default, bool):
        return "on" if default else "off"
    if default is None or default in ((), [], {}, ""):
        return "none"
    if isinstance(default, (list, tuple)):
        return ",".join(map(_value, default))
    return str(default)


def _paragraphs(text: str, width: int) -> list[str]:
    lines: list[str] = []
    for paragraph in text.strip().split("\n\n"):
        for part in re.split(r"\n(?=- )", paragraph):  # each item of a list on a line of its own
            indent = "  " if part.startswith("- ") else ""
            lines += textwrap.wrap(" ".join(part.split()), width, subsequent_indent=indent, break_on_hyphens=False)
        lines.append("")
    return lines[:-1]
