"""The training engine for loops you write yourself: run folder, exact resume, checkpoints, metrics, graceful stop.

Names are loaded on first use: a command line reads `RunOptions` without loading torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from contrastive_core.lazy import load_on_use

if TYPE_CHECKING:
    from contrastive_core.train.class_batches import ClassBatches
    from contrastive_core.train.interrupt import Interrupted
    from contrastive_core.train.loader import ignore_stop_signals, make_loader
    from contrastive_core.train.model_file import load_model
    from contrastive_core.train.options import RunOptions
    from contrastive_core.train.run import Run
    from contrastive_core.train.sampler import Batches
    from contrastive_core.train.sync_batchnorm import SyncBatchNorm, convert_sync_batchnorm

_MODULE = {
    "Batches": "sampler",
    "ClassBatches": "class_batches",
    "Interrupted": "interrupt",
    "Run": "run",
    "RunOptions": "options",
    "SyncBatchNorm": "sync_batchnorm",
    "convert_sync_batchnorm": "sync_batchnorm",
    "ignore_stop_signals": "loader",
    "load_model": "model_file",
    "make_loader": "loader",
}

__all__ = [
    "Batches",
    "ClassBatches",
    "Interrupted",
    "Run",
    "RunOptions",
    "SyncBatchNorm",
    "convert_sync_batchnorm",
    "ignore_stop_signals",
    "load_model",
    "make_loader",
]

__getattr__, __dir__ = load_on_use(
    __name__, {name: f"contrastive_core.train.{module}" for name, module in _MODULE.items()}
)
