"""Code that opening a model would run: refused unless the person trusts it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from contrastive_core.errors import UserError

_TRUSTED: ContextVar[bool] = ContextVar("trusted", default=False)


@contextmanager
def trust_model_code() -> Iterator[None]:
    """Inside, models may name code of other packages, which is run when they are opened."""
    token = _TRUSTED.set(True)
    try:
        yield
    finally:
        _TRUSTED.reset(token)


def check_model_code(name: str, *, model: object) -> None:
    """Refuse to run code that a model folder names.

    Args:
        name: What would be called: "package.module:function".
        model: The folder, for the message.

    Raises:
        UserError: The person has not said that they trust the code of models.
    """
    if not _TRUSTED.get():
        raise UserError(
            f"{model}: its network is {name}, code outside this package that opening the model would run. If you know "
            "where the model comes from and trust that code, give --trust_model_code (in Python: with "
            "contrastive_core.training.trust_model_code())"
        )
