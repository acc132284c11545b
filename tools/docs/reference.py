"""Pages of the Python reference: one for every folder and module at the root of a package."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType

NOT_API = frozenset({"__main__", "cli", "commands", "configs", "native", "reports"})
"""Parts of a package whose Python names are not for users; commands have pages of their own."""


@dataclass(frozen=True)
class Entry:
    """A public name.

    Attributes:
        path: The shortest path on which the name is public: where users import it from.
        module: The module that defines it.
        kind: class, function or data.
        summary: First sentence of its docstring.
        is_defined_here: Whether the folder or module of the page defines it, rather than exports it.
    """

    path: str
    module: str
    kind: str
    summary: str
    is_defined_here: bool = False


def pages(package: str) -> dict[str, str]:
    """The pages of a package in reStructuredText, by the name of their file.

    A name that two folders export has its entry where it is defined.
    """
    root = importlib.import_module(package)
    names = sorted(found.name for found in pkgutil.iter_modules(root.__path__))
    rooms = [f"{package}.{name}" for name in names if not name.startswith("_") and name not in NOT_API]
    found = {room: public(root, room) for room in rooms}
    homes = {id_: room for room, entries in found.items() for id_ in entries}
    homes |= {id_: room for room, entries in found.items() for id_, each in entries.items() if each.is_defined_here}
    written = {}
    for room, entries in found.items():
        if kept := [each for id_, each in entries.items() if homes[id_] == room]:
            written[room.rpartition(".")[2]] = page(room, kept)
    rest = [name for name in getattr(root, "__all__", ()) if not _is_in(getattr(root, name), rooms)]
    if rest:  # commands as functions, and what a private module defines
        others = [_entry(f"{package}.{name}", getattr(root, name), package) for name in rest]
        written[package] = page(package, [each for each in others if each])
    return written


def page(room: str, entries: list[Entry]) -> str:
    """The page of a folder or module: what it is for, a list of its names, and each name."""
    parts = [_heading(room, "="), _docstring(room)]
    parts.append("\n".join(f"- `{each.path.rpartition('.')[2]} <{each.path}>`: {each.summary}" for each in entries))
    for module in dict.fromkeys(each.module for each in entries):
        if module != room:
            parts += [_heading(module, "-"), _docstring(module)]
        parts += [_directive(each) for each in entries if each.module == module]
    return "\n\n".join(parts) + "\n"


def public(root: ModuleType, room: str) -> dict[int, Entry]:
    """The public names of a folder or module at the root, each once, by the identity of what they name.

    They are those of its `__all__`; where it has none, those of all modules in it.
    """
    found: dict[int, Entry] = {}
    module = importlib.import_module(room)
    at_root = {id(getattr(root, name)): name for name in getattr(root, "__all__", ())}
    for place in [module] if hasattr(module, "__all__") else [module, *_below(module)]:
        for name in public_names(place):
            value = getattr(place, name)
            path = f"{root.__name__}.{at_root[id(value)]}" if id(value) in at_root else f"{place.__name__}.{name}"
            entry = _entry(path, value, room)
            if entry is not None and id(value) not in found:
                found[id(value)] = entry
    for name in getattr(root, "__all__", ()):
        value = getattr(root, name)
        if id(value) not in found and _is_in(value, [room]):
            entry = _entry(f"{root.__name__}.{name}", value, room)
            if entry is not None:
                found[id(value)] = entry
    return found


def public_names(module: ModuleType) -> list[str]:
    """What a module offers: its `__all__`, or the functions and classes that it defines."""
    if hasattr(module, "__all__"):
        return list(module.__all__)
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isclass(value) or inspect.isroutine(value))
        and getattr(value, "__module__", "") == module.__name__
    ]


def _entry(path: str, value: object, room: str) -> Entry | None:
    """The entry of a name; None for a module and for what has no docstring of its own."""
    if inspect.ismodule(value):
        return None
    if not (inspect.isclass(value) or inspect.isroutine(value)):
        return Entry(path, room, "data", "")
    defined = str(getattr(value, "__module__", room))
    doc = inspect.getdoc(value) if value.__doc__ else None
    if doc is None:
        return None
    summary = " ".join(doc.partition("\n\n")[0].split())
    kind = "class" if inspect.isclass(value) else "function"
    here = defined == room or defined.startswith(f"{room}.")
    return Entry(path, defined if here else room, kind, summary, here)


def _below(module: ModuleType) -> Iterator[ModuleType]:
    for found in pkgutil.walk_packages(getattr(module, "__path__", ()), f"{module.__name__}."):
        if not any(part.startswith("_") for part in found.name.split(".")):
            yield importlib.import_module(found.name)


def _is_in(value: object, rooms: list[str]) -> bool:
    defined = str(getattr(value, "__module__", ""))
    return any(defined == room or defined.startswith(f"{room}.") for room in rooms)


def _directive(entry: Entry) -> str:
    if entry.kind == "data":
        return f".. py:data:: {entry.path}"
    return f".. auto{entry.kind}:: {entry.path}" + "\n   :members:" * (entry.kind == "class")


def _docstring(module: str) -> str:
    """The text of a module, which is no target of its own: names are documented where users import them."""
    return f".. automodule:: {module}\n   :no-index:"


def _heading(text: str, line: str) -> str:
    title = f"``{text}``"
    return f"{title}\n{line * len(title)}"
