"""MRI segmentation with 1-8 labelled volumes. Every command is a function here; names are loaded on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from contrastive_core._lazy import load_on_use

__version__ = "0.1.0"

if TYPE_CHECKING:
    from contrastive_core.training import RunOptions
    from ssl_medseg.commands.check import check
    from ssl_medseg.commands.demo import demo
    from ssl_medseg.commands.export import export
    from ssl_medseg.commands.make_splits import make_splits
    from ssl_medseg.commands.next_cases import next_cases
    from ssl_medseg.commands.predict import predict
    from ssl_medseg.commands.pretrain import pretrain
    from ssl_medseg.commands.report import report
    from ssl_medseg.commands.run import run
    from ssl_medseg.datasets import DataOptions
    from ssl_medseg.models import NetworkOptions
    from ssl_medseg.prediction import InferenceOptions
    from ssl_medseg.preprocessing import PreprocessingOptions
    from ssl_medseg.pretraining.stages import PretrainingOptions
    from ssl_medseg.reports.evaluation import evaluate
    from ssl_medseg.selftraining.options import (
        ConsistencyOptions,
        ContrastOptions,
        PseudoLabelOptions,
        SelfTrainingOptions,
        TeacherOptions,
    )
    from ssl_medseg.selftraining.training import selftrain
    from ssl_medseg.training.recipe import OptimizerOptions, TrainingOptions
    from ssl_medseg.training.slices import AugmentOptions
    from ssl_medseg.training.supervised import train

__all__ = [
    "AugmentOptions",
    "ConsistencyOptions",
    "ContrastOptions",
    "DataOptions",
    "InferenceOptions",
    "NetworkOptions",
    "OptimizerOptions",
    "PreprocessingOptions",
    "PretrainingOptions",
    "PseudoLabelOptions",
    "RunOptions",
    "SelfTrainingOptions",
    "TeacherOptions",
    "TrainingOptions",
    "check",
    "demo",
    "evaluate",
    "export",
    "make_splits",
    "next_cases",
    "predict",
    "pretrain",
    "report",
    "run",
    "selftrain",
    "train",
]

_ELSEWHERE = {
    "contrastive_core.training": ("RunOptions",),
    "ssl_medseg.datasets": ("DataOptions",),
    "ssl_medseg.models": ("NetworkOptions",),
    "ssl_medseg.prediction": ("InferenceOptions",),
    "ssl_medseg.preprocessing": ("PreprocessingOptions",),
    "ssl_medseg.pretraining.stages": ("PretrainingOptions",),
    "ssl_medseg.reports.evaluation": ("evaluate",),
    "ssl_medseg.selftraining.options": (
        "ConsistencyOptions",
        "ContrastOptions",
        "PseudoLabelOptions",
        "SelfTrainingOptions",
        "TeacherOptions",
    ),
    "ssl_medseg.selftraining.training": ("selftrain",),
    "ssl_medseg.training.recipe": ("OptimizerOptions", "TrainingOptions"),
    "ssl_medseg.training.slices": ("AugmentOptions",),
    "ssl_medseg.training.supervised": ("train",),
}
_MODULE = {name: module for module, names in _ELSEWHERE.items() for name in names}

__getattr__, __dir__ = load_on_use(
    __name__, {name: _MODULE.get(name, f"ssl_medseg.commands.{name}") for name in __all__}
)
