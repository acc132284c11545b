"""Image classification with few labels. Every command is a function here; names are loaded on first use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from ssl_vision.commands.check import check
    from ssl_vision.commands.demo import demo
    from ssl_vision.commands.embed import embed
    from ssl_vision.commands.evaluate import evaluate
    from ssl_vision.commands.knn import knn
    from ssl_vision.commands.linear import linear
    from ssl_vision.commands.make_splits import make_splits
    from ssl_vision.commands.predict import predict
    from ssl_vision.commands.pretrain import pretrain
    from ssl_vision.commands.report import report
    from ssl_vision.commands.transfer import transfer

__all__ = [
    "check",
    "demo",
    "embed",
    "evaluate",
    "knn",
    "linear",
    "make_splits",
    "predict",
    "pretrain",
    "report",
    "transfer",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'ssl_vision' has no attribute {name!r}")
    return getattr(importlib.import_module(f"ssl_vision.commands.{name}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
