"""Action recognition with few labels. Every command is a function here; modules are imported on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from contrastive_core._lazy import load_on_use

__version__ = "0.1.0"

if TYPE_CHECKING:
    from contrastive_core.training import RunOptions
    from ssl_video.augment import ClipAugment, StrongOptions, WeakOptions
    from ssl_video.commands.check import check
    from ssl_video.commands.demo import demo
    from ssl_video.commands.evaluate import evaluate
    from ssl_video.commands.export import export
    from ssl_video.commands.flow import flow
    from ssl_video.commands.make_splits import LabelDrawOptions, make_splits
    from ssl_video.commands.predict import predict
    from ssl_video.commands.report import report
    from ssl_video.commands.train import train
    from ssl_video.data import ClipSpec
    from ssl_video.data.reader import ReadOptions, TolerantReadOptions, TrainingReadOptions
    from ssl_video.evaluation import SamplingOptions
    from ssl_video.models import NetworkOptions
    from ssl_video.models.networks import recalibrate_bn
    from ssl_video.mvpl.method import MultiviewPseudoLabel
    from ssl_video.training.options import InputOptions, OptimizerOptions, PseudoOptions, TrainingOptions

_ELSEWHERE = {
    "contrastive_core.training": ("RunOptions",),
    "ssl_video.augment": ("ClipAugment", "StrongOptions", "WeakOptions"),
    "ssl_video.commands.make_splits": ("LabelDrawOptions",),
    "ssl_video.data": ("ClipSpec",),
    "ssl_video.data.reader": ("ReadOptions", "TolerantReadOptions", "TrainingReadOptions"),
    "ssl_video.evaluation": ("SamplingOptions",),
    "ssl_video.models": ("NetworkOptions",),
    "ssl_video.models.networks": ("recalibrate_bn",),
    "ssl_video.mvpl.method": ("MultiviewPseudoLabel",),
    "ssl_video.training.options": ("InputOptions", "OptimizerOptions", "PseudoOptions", "TrainingOptions"),
}
_MODULE = {name: module for module, names in _ELSEWHERE.items() for name in names}

__all__ = [
    "ClipAugment",
    "ClipSpec",
    "InputOptions",
    "LabelDrawOptions",
    "MultiviewPseudoLabel",
    "NetworkOptions",
    "OptimizerOptions",
    "PseudoOptions",
    "ReadOptions",
    "RunOptions",
    "SamplingOptions",
    "StrongOptions",
    "TolerantReadOptions",
    "TrainingOptions",
    "TrainingReadOptions",
    "WeakOptions",
    "check",
    "demo",
    "evaluate",
    "export",
    "flow",
    "make_splits",
    "predict",
    "recalibrate_bn",
    "report",
    "train",
]

__getattr__, __dir__ = load_on_use(
    __name__, {name: _MODULE.get(name, f"ssl_video.commands.{name}") for name in __all__}
)
