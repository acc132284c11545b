"""Contrastive losses, projection heads and optimisers for learning with few labels.

Names are loaded on first use, so that `import contrastive_core` costs nothing and a command line can answer `--help`
without loading torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from contrastive_core._info import info
    from contrastive_core.heads import ProjectionHead
    from contrastive_core.losses import (
        DistillationLoss,
        InfoNCELoss,
        LocalContrastiveLoss,
        NTXentLoss,
        SuNCEtLoss,
        SupConLoss,
        distillation,
        info_nce,
        local_contrastive,
        nt_xent,
        suncet,
        supcon,
    )
    from contrastive_core.optim import LARS, WarmupCosine, lars_param_groups

__all__ = [
    "LARS",
    "DistillationLoss",
    "InfoNCELoss",
    "LocalContrastiveLoss",
    "NTXentLoss",
    "ProjectionHead",
    "SuNCEtLoss",
    "SupConLoss",
    "WarmupCosine",
    "distillation",
    "info",
    "info_nce",
    "lars_param_groups",
    "local_contrastive",
    "nt_xent",
    "suncet",
    "supcon",
]

_ROOM = {
    "LARS": "optim",
    "WarmupCosine": "optim",
    "lars_param_groups": "optim",
    "ProjectionHead": "heads",
    "info": "_info",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'contrastive_core' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"contrastive_core.{_ROOM.get(name, 'losses')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
