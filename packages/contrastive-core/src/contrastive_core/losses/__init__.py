"""Contrastive, semi-supervised and distillation losses, each as a pure function and as a module."""

from contrastive_core.losses._inputs import count_skipped_anchors
from contrastive_core.losses.distillation import DistillationLoss, distillation
from contrastive_core.losses.info_nce import InfoNCELoss, info_nce
from contrastive_core.losses.local_contrastive import LocalContrastiveLoss, local_contrastive
from contrastive_core.losses.nt_xent import NTXentLoss, nt_xent
from contrastive_core.losses.paws import PAWSLoss, paws
from contrastive_core.losses.suncet import SuNCEtLoss, suncet
from contrastive_core.losses.supcon import SupConLoss, supcon

__all__ = [
    "DistillationLoss",
    "InfoNCELoss",
    "LocalContrastiveLoss",
    "NTXentLoss",
    "PAWSLoss",
    "SuNCEtLoss",
    "SupConLoss",
    "count_skipped_anchors",
    "distillation",
    "info_nce",
    "local_contrastive",
    "nt_xent",
    "paws",
    "suncet",
    "supcon",
]
