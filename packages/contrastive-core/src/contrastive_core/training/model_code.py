"""Refuse to run foreign code that a model folder names, unless the user trusts it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from contrastive_core.errors import UserError

_TRUSTED: ContextVar[bool] = ContextVar("trusted", default=False)


@contextmanager
def trust_model_code() -> Iterator[None]:
    """Allow models to name code of other packages, which runs when they are opened, inside the block."""
    token = _TRUSTED.set(True)
    try:
        yield
    finally:
        _TRUSTED.reset(token)


def check_model_code(name: str, *, model: object) -> None:
    """Refuse to run code that a model folder names.

    Args:
        name: Function that would be called, "package.module:function".
        model: Model folder, for the message.

    Raises:
        UserError: The user has not declared to trust the code of models.
    """
    if not _TRUSTED.get():
        raise UserError(
            f"{model}: its network is {name}, code outside this package that opening the model would run. If you know "
            "where the model comes from and trust that code, give --trust-model-code (in Python: with "
            "contrastive_core.training.trust_model_code())"
        )
