"""Generate the pages of the Python reference, one for every folder and module at the root of a package."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType

NOT_API = frozenset({"__main__", "cli", "commands", "configs", "native", "reports"})
"""Parts of a package whose Python names are not public; commands have separate pages."""


@dataclass(frozen=True)
class Entry:
    """Public name with an entry in the reference.

    Attributes:
        path: Shortest path from which users can import the name.
        module: Module that defines the name.
        kind: Kind of the object: class, function or data.
        summary: First sentence of the docstring.
        is_defined_here: Whether the folder or module of the page defines the name, rather than only exporting it.
        target: Name to which links lead, if another package defines the name and has its index entry.
    """

    path: str
    module: str
    kind: str
    summary: str
    is_defined_here: bool = False
    target: str | None = None


def pages(package: str) -> dict[str, str]:
    """Return the pages of a package in reStructuredText by the name of their file.

    A name that several folders export has its entry on the page of the folder that defines it.
    """
    root = importlib.import_module(package)
    names = sorted(info.name for info in pkgutil.iter_modules(root.__path__))
    sections = [f"{package}.{name}" for name in names if not name.startswith("_") and name not in NOT_API]
    entries_of = {section: public(root, section) for section in sections}
    pages_of = {id_: section for section, entries in entries_of.items() for id_ in entries}
    pages_of |= {
        id_: section for section, entries in entries_of.items() for id_, each in entries.items() if each.is_defined_here
    }
    texts = {}
    for section, entries in entries_of.items():
        if section_entries := [each for id_, each in entries.items() if pages_of[id_] == section]:
            texts[section.rpartition(".")[2]] = page(section, section_entries)
    root_names = [name for name in getattr(root, "__all__", ()) if not _is_in(getattr(root, name), sections)]
    if root_names:  # commands as functions, and names that a private module defines
        root_entries = [_entry(f"{package}.{name}", getattr(root, name), package) for name in root_names]
        texts[package] = page(package, [each for each in root_entries if each])
    return texts


def page(section: str, entries: list[Entry]) -> str:
    """Return the page of a folder or module with its docstring, a list of its names, and the entry of each name."""
    parts = [_heading(section, "="), _docstring(section)]
    parts.append(
        "\n".join(
            f"- `{each.path.rpartition('.')[2]} <{each.target or each.path}>`: {each.summary}" for each in entries
        )
    )
    for module in dict.fromkeys(each.module for each in entries):
        if module != section:
            parts += [_heading(module, "-"), _docstring(module)]
        parts += [_directive(each) for each in entries if each.module == module]
    return "\n\n".join(parts) + "\n"


def public(root: ModuleType, section: str) -> dict[int, Entry]:
    """Return the public names of a folder or module at the root of a package, by the identity of their objects.

    These are the names in `__all__`, or the names of all modules in the folder if it has no `__all__`.
    """
    entries: dict[int, Entry] = {}
    module = importlib.import_module(section)
    at_root = {id(getattr(root, name)): name for name in getattr(root, "__all__", ())}
    for place in [module] if hasattr(module, "__all__") else [module, *_below(module)]:
        for name in public_names(place):
            value = getattr(place, name)
            path = f"{root.__name__}.{at_root[id(value)]}" if id(value) in at_root else f"{place.__name__}.{name}"
            entry = _entry(path, value, section)
            if entry is not None and id(value) not in entries:
                entries[id(value)] = entry
    for name in getattr(root, "__all__", ()):
        value = getattr(root, name)
        if id(value) not in entries and _is_in(value, [section]):
            entry = _entry(f"{root.__name__}.{name}", value, section)
            if entry is not None:
                entries[id(value)] = entry
    return entries


def public_names(module: ModuleType) -> list[str]:
    """Return the public names of a module: its `__all__`, or the functions and classes that it defines."""
    if hasattr(module, "__all__"):
        return list(module.__all__)
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isclass(value) or inspect.isroutine(value))
        and getattr(value, "__module__", "") == module.__name__
    ]


def _entry(path: str, value: object, section: str) -> Entry | None:
    """Return the entry of a name, or None for a module and for an object without docstring."""
    if inspect.ismodule(value):
        return None
    if not (inspect.isclass(value) or inspect.isroutine(value)):
        return Entry(path, section, "data", "")
    origin = str(getattr(value, "__module__", section))
    doc = inspect.getdoc(value) if value.__doc__ else None
    if doc is None:
        return None
    summary = " ".join(doc.partition("\n\n")[0].split())
    kind = "class" if inspect.isclass(value) else "function"
    here = origin == section or origin.startswith(f"{section}.")
    is_foreign = origin.partition(".")[0] != path.partition(".")[0]
    target = f"{origin}.{getattr(value, '__qualname__', '')}" if is_foreign else None
    return Entry(path, origin if here else section, kind, summary, here, target)


def _below(module: ModuleType) -> Iterator[ModuleType]:
    for info in pkgutil.walk_packages(getattr(module, "__path__", ()), f"{module.__name__}."):
        if not any(part.startswith("_") for part in info.name.split(".")):
            yield importlib.import_module(info.name)


def _is_in(value: object, sections: list[str]) -> bool:
    origin = str(getattr(value, "__module__", ""))
    return any(origin == section or origin.startswith(f"{section}.") for section in sections)


def _directive(entry: Entry) -> str:
    if entry.kind == "data":
        return f".. py:data:: {entry.path}"
    options = ["members"] * (entry.kind == "class") + ["no-index"] * (entry.target is not None)
    return f".. auto{entry.kind}:: {entry.path}" + "".join(f"\n   :{option}:" for option in options)


def _docstring(module: str) -> str:
    """Return a directive for the docstring of a module, without a link target for the module."""
    return f".. automodule:: {module}\n   :no-index:"


def _heading(text: str, line: str) -> str:
    title = f"``{text}``"
    return f"{title}\n{line * len(title)}"
