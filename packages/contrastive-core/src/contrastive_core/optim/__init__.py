"""Optimiser and learning-rate schedule of SimCLR."""

from contrastive_core.optim.lars import LARS, lars_param_groups
from contrastive_core.optim.schedule import Steps, WarmupCosine, scaled_lr, steps_for

__all__ = ["LARS", "Steps", "WarmupCosine", "lars_param_groups", "scaled_lr", "steps_for"]
