"""Training engine for your own training loop: run folder, exact resume, checkpoints, metrics and graceful stop.

Names are imported on first use, so that a command line can read `RunOptions` without importing torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from contrastive_core._lazy import load_on_use

if TYPE_CHECKING:
    from contrastive_core.training.config import DrawOptions, InferenceOptions, RunOptions, SkipOptions
    from contrastive_core.training.model_code import check_model_code, trust_model_code
    from contrastive_core.training.model_file import load_model
    from contrastive_core.training.run import Run
    from contrastive_core.training.samplers import Batches, ClassBatches, make_loader, prepare_worker
    from contrastive_core.training.signals import Interrupted
    from contrastive_core.training.sync_batchnorm import SyncBatchNorm, convert_sync_batchnorm

_MODULE = {
    "Batches": "samplers",
    "ClassBatches": "samplers",
    "DrawOptions": "config",
    "InferenceOptions": "config",
    "Interrupted": "signals",
    "Run": "run",
    "RunOptions": "config",
    "SkipOptions": "config",
    "SyncBatchNorm": "sync_batchnorm",
    "check_model_code": "model_code",
    "convert_sync_batchnorm": "sync_batchnorm",
    "prepare_worker": "samplers",
    "load_model": "model_file",
    "make_loader": "samplers",
    "trust_model_code": "model_code",
}

__all__ = [
    "Batches",
    "ClassBatches",
    "DrawOptions",
    "InferenceOptions",
    "Interrupted",
    "Run",
    "RunOptions",
    "SkipOptions",
    "SyncBatchNorm",
    "check_model_code",
    "convert_sync_batchnorm",
    "load_model",
    "make_loader",
    "prepare_worker",
    "trust_model_code",
]

__getattr__, __dir__ = load_on_use(
    __name__, {name: f"contrastive_core.training.{module}" for name, module in _MODULE.items()}, extra="train"
)
