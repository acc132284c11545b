"""The flags of a typed function, from the short forms people write to the full ones a parser takes."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import re
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

_OWN = ("config", "print_config", "help")


class UsageError(Exception):
    """A command line that does not say what to do; the message says what it could have said."""


class Flags:
    """The arguments of a function: their names, nested ones behind dots, and types."""

    def __init__(self, function: Callable[..., Any]) -> None:
        hints = typing.get_type_hints(function)
        parameters = inspect.signature(function).parameters
        self.required = [name for name, p in parameters.items() if p.default is p.empty]
        self.types: dict[str, Any] = {}
        for name in parameters:
            self.types.update(_flatten(name, hints[name]))

    def canonical(self, words: Sequence[str], *, configs: str | None) -> list[str]:
        """The command line with full names and explicit values, configuration files first."""
        files: list[str] = []
        flags: list[tuple[str, str | None]] = []
        bare: list[str] = []
        rest = list(words)
        while rest:
            word = rest.pop(0)
            if word == "--":
                bare += rest
                break
            if word in ("-h", "--help") or re.match(r"--print[-_]config(=|$)", word):
                flags.append((word.replace("print-", "print_"), None))
            elif not word.startswith("-") or re.match(r"-(\.?\d|$)", word):
                bare.append(word)
            elif word.partition("=")[0] == "--config":
                files += self._checked(_find_config(_value(word, rest), configs))
            else:
                flags.append(self._flag(word, rest))
        given = {name.lstrip("-").rstrip("+") for name, _ in flags}
        places = [name for name in self.required if name not in given]
        if len(bare) > len(places):
            raise UsageError(
                f"unexpected argument {bare[len(places)]!r}; expected "
                + (f"{len(places)} without a flag ({', '.join(places)})" if places else "flags only")
            )
        flags += [(f"--{name}", value) for name, value in zip(places, bare, strict=False)]
        written = [name if value is None else f"{name}={value}" for name, value in flags]
        return [f"--config={path}" for path in files] + written

    def explain(self, message: str) -> str:
        """The parser's message in the words of this module, where it is about a value that does not fit."""
        key = re.search(r'Parser key "([\w.]+)"', message)
        value = re.search(r"(?:Got|Given) value: (.*)", message)
        if key and value and key[1] in self.types:
            return f"--{key[1]}: expected {in_words(self.types[key[1]])}, got {value[1]}"
        return message.replace("the following arguments are required:", "missing:")

    def _flag(self, word: str, rest: list[str]) -> tuple[str, str]:
        name, _, _ = word.partition("=")
        written = name.removeprefix("--").removesuffix("+")
        if not self._inside_open(written):
            written = written.replace("-", "_")
        plus = "+" if name.endswith("+") else ""
        key = self._full_name(written)
        if key is None and written.startswith("no_") and "=" not in word:
            positive = self._full_name(written.removeprefix("no_"))
            if positive is not None and self.types.get(positive) is bool:
                return f"--{positive}", "false"
        if key is None or not name.startswith("--"):
            raise UsageError(f"unknown flag {name}{nearest(written, self._names(), dashes=True)}")
        if self.types.get(key) is bool and "=" not in word:
            explicit = bool(rest) and rest[0].lower() in ("true", "false")
            return f"--{key}", rest.pop(0).lower() if explicit else "true"
        return f"--{key}{plus}", _value(word, rest)

    def _full_name(self, name: str) -> str | None:
        if name in self.types or self._inside_open(name):
            return name
        matches = [key for key in self.types if key.endswith(f".{name}")]
        if len(matches) > 1:
            raise UsageError(f"--{name} is ambiguous; expected one of {', '.join(f'--{key}' for key in matches)}")
        return matches[0] if matches else None

    def _inside_open(self, key: str) -> bool:
        # Types whose keys are not known beforehand (mappings, optional dataclasses) are left to the parser.
        parents = [key[:i] for i, letter in enumerate(key) if letter == "."]
        return any(parent in self.types and not _is_plain(self.types[parent]) for parent in parents)

    def _names(self) -> list[str]:
        return list(dict.fromkeys([*self.types, *(key.rpartition(".")[2] for key in self.types), *_OWN]))

    def _checked(self, path: str) -> list[str]:
        """The configuration file, if there is anything in it, with no key that is no argument."""
        import yaml  # noqa: PLC0415 - this module loads nothing heavy

        try:
            content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise UsageError(f"--config {path} cannot be read: {error}") from error
        if content is None:
            return []
        if not isinstance(content, dict):
            raise UsageError(f"--config {path} holds a {type(content).__name__}; expected lines `argument: value`")
        for key in _keys(content, self.types):
            if key not in self.types and not self._inside_open(key):
                raise UsageError(f"--config {path}: unknown key {key!r}{nearest(key, self.types)}")
        return [path]


def _flatten(name: str, kind: Any) -> Iterator[tuple[str, Any]]:
    yield name, kind
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        for field in dataclasses.fields(kind):
            if field.init:
                yield from _flatten(f"{name}.{field.name}", hints[field.name])


def _keys(content: Mapping[Any, Any], types: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in content.items():
        key = f"{prefix}{name}"
        yield key
        if isinstance(value, Mapping) and dataclasses.is_dataclass(types.get(key)):
            yield from _keys(value, types, f"{key}.")


def _is_plain(kind: Any) -> bool:
    return dataclasses.is_dataclass(kind) or kind in (bool, int, float, str, Path)


def _value(word: str, rest: list[str]) -> str:
    name, equals, value = word.partition("=")
    if equals:
        return value
    if not rest or rest[0].startswith("--"):
        raise UsageError(f"{name} expects a value")
    return rest.pop(0)


def _find_config(name: str, configs: str | None) -> str:
    if Path(name).is_file():
        return name
    known: list[str] = []
    if configs is not None:
        from importlib import resources  # noqa: PLC0415

        folder = resources.files(configs)
        if (folder / f"{name}.yaml").is_file():
            return str(folder / f"{name}.yaml")
        known = sorted(file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml"))
    ready = f", or one of the ready ones: {', '.join(known)}" if known else ""
    raise UsageError(f"--config {name}: no such file; expected a YAML file{ready}{nearest(name, known)}")


def nearest(name: str, known: Iterable[str], *, dashes: bool = False) -> str:
    """The end of a message about a wrong name: the valid one that is most like it."""
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.4)
    return f"; did you mean {'--' if dashes else ''}{match[0]}?" if match else ""


_WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    Path: "a path",
    type(None): "null",
}


def in_words(kind: Any) -> str:
    """What a value of this type is, for people: "a whole number", "one of sgd, lars"."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return f"one of {', '.join(map(str, inner))}"
    if origin in (typing.Union, types.UnionType):
        return " or ".join(in_words(part) for part in inner)
    if origin in (list, tuple) and (len(inner) == 1 or inner[-1] is Ellipsis):
        return f"a list (each {in_words(inner[0])})"
    if origin is tuple:
        return f"a list of {len(inner)} ({', '.join(in_words(part) for part in inner)})"
    if origin is dict:
        return f"a mapping (each {in_words(inner[1])})"
    return _WORDS[kind] if kind in _WORDS else str(getattr(kind, "__name__", kind))
