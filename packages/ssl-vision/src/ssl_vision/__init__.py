"""Image classification with few labels. Every command is a function of this package, imported on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from contrastive_core._lazy import load_on_use

__version__ = "0.1.0"

if TYPE_CHECKING:
    from contrastive_core.training import InferenceOptions, RunOptions
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
    from ssl_vision.commands.make_splits import LabelDrawOptions, make_splits
    from ssl_vision.commands.predict import predict
    from ssl_vision.commands.pretrain import pretrain
    from ssl_vision.commands.report import report
    from ssl_vision.commands.transfer import transfer
    from ssl_vision.data.dataset import ReadOptions, TrainingReadOptions, UnlabelledReadOptions
    from ssl_vision.evaluation.scores import ProbeOptions
    from ssl_vision.models import EncoderOptions
    from ssl_vision.training.finetuning import finetune
    from ssl_vision.training.options import (
        AugmentOptions,
        DistillationOptions,
        FinetuningOptions,
        HeadOptions,
        MemoryOptions,
        OptimizerOptions,
        PretrainingOptions,
        SuNCEtOptions,
        ValidationOptions,
    )

__all__ = [
    "AugmentOptions",
    "DistillationOptions",
    "EncoderOptions",
    "FinetuningOptions",
    "HeadOptions",
    "InferenceOptions",
    "LabelDrawOptions",
    "MemoryOptions",
    "OptimizerOptions",
    "PretrainingOptions",
    "ProbeOptions",
    "ReadOptions",
    "RunOptions",
    "SuNCEtOptions",
    "TrainingReadOptions",
    "UnlabelledReadOptions",
    "ValidationOptions",
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

_ELSEWHERE = {
    "contrastive_core.training": ("InferenceOptions", "RunOptions"),
    "ssl_vision.commands.make_splits": ("LabelDrawOptions",),
    "ssl_vision.data.dataset": ("ReadOptions", "TrainingReadOptions", "UnlabelledReadOptions"),
    "ssl_vision.evaluation.scores": ("ProbeOptions",),
    "ssl_vision.models": ("EncoderOptions",),
    "ssl_vision.training.finetuning": ("finetune",),
    "ssl_vision.training.options": (
        *("AugmentOptions", "DistillationOptions", "FinetuningOptions", "HeadOptions", "MemoryOptions"),
        *("OptimizerOptions", "PretrainingOptions", "SuNCEtOptions", "ValidationOptions"),
    ),
}
_MODULE = {name: module for module, names in _ELSEWHERE.items() for name in names}

__getattr__, __dir__ = load_on_use(
    __name__, {name: _MODULE.get(name, f"ssl_vision.commands.{name}") for name in __all__}
)
