"""Libraries that some kinds of files need and not every installation has."""

from __future__ import annotations

import importlib
from typing import Any

from contrastive_core.errors import UserError


def import_extra(module: str, *, extra: str, needed_for: str) -> Any:
    """Import a library that an extra of the package brings.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f'{needed_for} needs {module.partition(".")[0]}: pip install "ssl-medseg[{extra}]" ({error})'
        ) from error
