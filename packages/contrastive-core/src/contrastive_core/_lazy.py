"""Import the public names of a package on first use, so that importing the package costs nothing."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def load_on_use(
    package: str, places: Mapping[str, str], *, extra: str | None = None
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Build the `__getattr__` and `__dir__` functions of a package that imports its public names on first use.

    Args:
        package: `__name__` of the package.
        places: Module that defines each public name.
        extra: Extra of contrastive-core that installs the dependencies of these modules.

    Returns:
        `__getattr__` and `__dir__`, to be assigned in the package's `__init__.py`.

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
