"""Image classification with few labels. Every command is a function of this package, imported on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from contrastive_core._lazy import load_on_use

__version__ = "0.1.0"

if TYPE_CHECKING:
    from ssl_vision.commands.check import check
    from ssl_vision.commands.demo import demo
    from ssl_vision.commands.distill import distill
    from ssl_vision.commands.embed import embed
    from ssl_vision.commands.evaluate import evaluate
    from ssl_vision.commands.export import export
    from ssl_vision.commands.few_labels import few_labels
    from ssl_vision.commands.import_checkpoint import import_checkpoint
    from ssl_vision.commands.knn import knn
    from ssl_vision.commands.linear import linear
    from ssl_vision.commands.make_splits import make_splits
    from ssl_vision.commands.predict import predict
    from ssl_vision.commands.pretrain import pretrain
    from ssl_vision.commands.report import report
    from ssl_vision.commands.transfer import transfer
    from ssl_vision.training.finetuning import finetune

__all__ = [
    "check",
    "demo",
    "distill",
    "embed",
    "evaluate",
    "export",
    "few_labels",
    "finetune",
    "import_checkpoint",
    "knn",
    "linear",
    "make_splits",
    "predict",
    "pretrain",
    "report",
    "transfer",
]

_ELSEWHERE = {"finetune": "training.finetuning"}

__getattr__, __dir__ = load_on_use(
    __name__, {name: f"ssl_vision.{_ELSEWHERE.get(name, f'commands.{name}')}" for name in __all__}
)
