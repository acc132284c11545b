"""MRI segmentation with 1-8 labelled volumes. Every command is a function here; names are loaded on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from contrastive_core._lazy import load_on_use

__version__ = "0.1.0"

if TYPE_CHECKING:
    from ssl_medseg.commands.check import check
    from ssl_medseg.commands.demo import demo
    from ssl_medseg.commands.export import export
    from ssl_medseg.commands.make_splits import make_splits
    from ssl_medseg.commands.next_cases import next_cases
    from ssl_medseg.commands.predict import predict
    from ssl_medseg.commands.pretrain import pretrain
    from ssl_medseg.commands.report import report
    from ssl_medseg.commands.run import run
    from ssl_medseg.reports.evaluation import evaluate
    from ssl_medseg.selftraining.training import selftrain
    from ssl_medseg.training.supervised import train

__all__ = [
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
    "evaluate": "reports.evaluation",
    "selftrain": "selftraining.training",
    "train": "training.supervised",
}

__getattr__, __dir__ = load_on_use(
    __name__, {name: f"ssl_medseg.{_ELSEWHERE.get(name, f'commands.{name}')}" for name in __all__}
)
