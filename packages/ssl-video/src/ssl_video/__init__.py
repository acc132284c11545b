"""Action recognition with few labels. Every command is a function here; modules are imported on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from contrastive_core._lazy import load_on_use

__version__ = "0.1.0"

if TYPE_CHECKING:
    from ssl_video.augment import ClipAugment
    from ssl_video.commands.check import check
    from ssl_video.commands.demo import demo
    from ssl_video.commands.evaluate import evaluate
    from ssl_video.commands.export import export
    from ssl_video.commands.flow import flow
    from ssl_video.commands.make_splits import make_splits
    from ssl_video.commands.predict import predict
    from ssl_video.commands.report import report
    from ssl_video.commands.train import train
    from ssl_video.models.networks import recalibrate_bn
    from ssl_video.mvpl.method import MultiviewPseudoLabel

_ELSEWHERE = {
    "ClipAugment": "augment",
    "MultiviewPseudoLabel": "mvpl.method",
    "recalibrate_bn": "models.networks",
}

__all__ = [
    "ClipAugment",
    "MultiviewPseudoLabel",
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
    __name__, {name: f"ssl_video.{_ELSEWHERE.get(name, f'commands.{name}')}" for name in __all__}
)
