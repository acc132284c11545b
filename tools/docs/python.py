"""Reference pages of modules: signature and docstring of every public function and class."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from tools.docs.docstring import to_markdown

_WIDTH = 100


def render_module(name: str) -> str:
    """A chapter about one module: what it is for, then its public names in the order of `__all__` or of the source."""
    module = importlib.import_module(name)
    parts: list[str] = [f"## `{name}`", to_markdown(inspect.getdoc(module) or "")]
    found = [(public, getattr(module, public)) for public in public_names(module)]
    for public, value in sorted(found, key=lambda pair: inspect.isclass(pair[1])):  # functions first
        parts += _entry(public, value)
    return "\n\n".join(parts)


def public_names(module: ModuleType) -> list[str]:
    """What a module offers: its `__all__`, or the functions and classes it defines."""
    if hasattr(module, "__all__"):
        return list(module.__all__)
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isclass(value) or inspect.isroutine(value))
        and getattr(value, "__module__", "") == module.__name__
    ]


def _entry(name: str, value: Any) -> Iterator[str]:
    if not (inspect.isclass(value) or inspect.isroutine(value)):
        return  # constants and names of types stand in the signatures that use them
    yield f"### `{name}`"
    yield _signature(name, value)
    yield to_markdown(inspect.getdoc(value) or "")
    if inspect.isclass(value):
        for own, member in vars(value).items():
            if not own.startswith("_") and _is_documented(member):
                yield from _member(own, member)


def _is_documented(member: Any) -> bool:
    function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
    return (inspect.isroutine(function) or isinstance(member, property)) and bool(getattr(function, "__doc__", None))


def _member(name: str, member: Any) -> Iterator[str]:
    if isinstance(member, property):
        yield f"#### `{name}` (property)"
    else:
        yield f"#### `{name}`"
        yield _signature(name, getattr(member, "__func__", member), bound=True)
    yield to_markdown(inspect.getdoc(member) or "")


def _signature(name: str, value: Any, *, bound: bool = False) -> str:
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):
        return f"```py\n{name}\n```"
    parameters = list(signature.parameters.values())[1 if bound else 0 :]
    words = _words(parameters)
    result = "" if inspect.isclass(value) else _arrow(signature.return_annotation)
    line = f"{name}({', '.join(words)}){result}"
    if len(line) > _WIDTH:
        line = f"{name}(\n" + "".join(f"    {word},\n" for word in words) + f"){result}"
    return f"```py\n{line}\n```"


def _words(parameters: list[inspect.Parameter]) -> list[str]:
    """Parameters as in a def, with the star before the first that goes by keyword only."""
    words: list[str] = []
    starred = False
    for parameter in parameters:
        keyword_only = parameter.kind is parameter.KEYWORD_ONLY
        if keyword_only and not starred:
            words.append("*")
        starred |= keyword_only or parameter.kind is parameter.VAR_POSITIONAL
        star = "*" * (parameter.kind is parameter.VAR_POSITIONAL) + "**" * (parameter.kind is parameter.VAR_KEYWORD)
        word = f"{star}{parameter.name}"
        if parameter.annotation is not parameter.empty:
            word += f": {type_in_words(parameter.annotation)}"
        if parameter.default is not parameter.empty:
            word += f" = {default_in_words(parameter.default)}"
        words.append(word)
    return words


def _arrow(annotation: Any) -> str:
    return "" if annotation is inspect.Signature.empty else f" -> {type_in_words(annotation)}"


def type_in_words(annotation: Any) -> str:
    """A type as it is written in the source."""
    if isinstance(annotation, str):
        return annotation
    return inspect.formatannotation(annotation).replace("pathlib.", "").replace("typing.", "")


def default_in_words(value: Any) -> str:
    """A default as it is written in the source; options are all of their defaults."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return f"{type(value).__name__}()"
    if type(value).__name__ == "_HAS_DEFAULT_FACTORY_CLASS":
        return "..."
    if inspect.isclass(value) or inspect.isroutine(value):
        return str(getattr(value, "__name__", value))
    return f'Path("{value}")' if hasattr(value, "joinpath") else repr(value)
