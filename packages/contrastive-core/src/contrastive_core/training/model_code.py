"""Import custom networks, and prevent model folders from running code of other packages unless the user trusts it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from contrastive_core.errors import UserError

_TRUSTED: ContextVar[bool] = ContextVar("trusted", default=False)


@contextmanager
def trust_model_code() -> Iterator[None]:
    """Allow models opened inside the block to run code of other packages that they name."""
    token = _TRUSTED.set(True)
    try:
        yield
    finally:
        _TRUSTED.reset(token)


def check_model_code(name: str, *, model: object) -> None:
    """Raise an error unless the user trusts the code that a model folder names.

    Args:
        name: Function that would be called, in the form "package.module:function".
        model: Model folder, for the error message.

    Raises:
        UserError: The call is not inside `trust_model_code`.
    """
    if not _TRUSTED.get():
        raise UserError(
            f"{model}: opening this model would run {name}, which is not part of this package. If you know where the "
            "model comes from and trust this code, pass --trust-model-code (in Python: with "
            "contrastive_core.training.trust_model_code())"
        )


def import_function(name: str, *, setting: str) -> Callable[..., Any]:
    """Import the function of a custom network, which may be in the current folder; installed packages take precedence.

    Args:
        name: Function in the form "package.module:function".
        setting: Setting that names it, such as "network.name", for the error message.

    Raises:
        UserError: There is no such module or function.
    """
    module, _, function = name.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        factory: Callable[..., Any] = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"{setting} is {name!r}: {error}; expected package.module:function in an installed package or in the "
            "current folder"
        ) from error
    return factory
