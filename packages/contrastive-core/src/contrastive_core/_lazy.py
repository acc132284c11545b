"""Load the names of a package on first use, so that importing it costs nothing."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def load_on_use(
    package: str, places: Mapping[str, str], *, extra: str | None = None
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return `__getattr__` and `__dir__` of a package, for its `__init__.py`.

    Args:
        package: `__name__` of the package.
        places: Module of each public name.
        extra: Extra of contrastive-core that installs what these modules import.

    >>> load_on_use("contrastive_core", {"LARS": "contrastive_core.optim"})[0]("LARS").__name__
    'LARS'
    """

    def get(name: str) -> Any:
        if name not in places:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        try:
            module = importlib.import_module(places[name])
        except ModuleNotFoundError as error:
            if extra is None or error.name is None or error.name.startswith(package):
                raise
            raise ModuleNotFoundError(
                f"{package}.{name} needs {error.name}, which is not installed. Install it with: "
                f"pip install 'contrastive-core[{extra}]'",
                name=error.name,
            ) from error
        value = getattr(module, name)
        setattr(sys.modules[package], name, value)
        return value

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *places})

    return get, names
