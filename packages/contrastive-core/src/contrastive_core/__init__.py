"""Contrastive losses, projection heads and optimisers for learning with few labels.

Names are loaded on first use, so that `import contrastive_core` costs nothing and a command line can answer `--help`
without loading torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from contrastive_core._lazy import load_on_use

__version__ = "0.1.0"

if TYPE_CHECKING:
    from contrastive_core._info import info
    from contrastive_core.grad_cache import encode_in_chunks
    from contrastive_core.heads import ProjectionHead
    from contrastive_core.losses import (
        DistillationLoss,
        InfoNCELoss,
        LocalContrastiveLoss,
        NTXentLoss,
        PAWSLoss,
        SuNCEtLoss,
        SupConLoss,
        distillation,
        info_nce,
        local_contrastive,
        nt_xent,
        paws,
        suncet,
        supcon,
    )
    from contrastive_core.memory_bank import MemoryBank
    from contrastive_core.optim import LARS, WarmupCosine, lars_param_groups

__all__ = [
    "LARS",
    "DistillationLoss",
    "InfoNCELoss",
    "LocalContrastiveLoss",
    "MemoryBank",
    "NTXentLoss",
    "PAWSLoss",
    "ProjectionHead",
    "SuNCEtLoss",
    "SupConLoss",
    "WarmupCosine",
    "distillation",
    "encode_in_chunks",
    "info",
    "info_nce",
    "lars_param_groups",
    "local_contrastive",
    "nt_xent",
    "paws",
    "suncet",
    "supcon",
]

_ELSEWHERE = {
    "LARS": "optim",
    "MemoryBank": "memory_bank",
    "WarmupCosine": "optim",
    "lars_param_groups": "optim",
    "ProjectionHead": "heads",
    "encode_in_chunks": "grad_cache",
    "info": "_info",
}

__getattr__, __dir__ = load_on_use(
    __name__, {name: f"contrastive_core.{_ELSEWHERE.get(name, 'losses')}" for name in __all__}
)
