"""The optimiser and the learning-rate schedule of SimCLR."""

from contrastive_core.optim.lars import LARS
from contrastive_core.optim.param_groups import lars_param_groups
from contrastive_core.optim.schedule import Steps, WarmupCosine, scaled_lr, steps_for

__all__ = ["LARS", "Steps", "WarmupCosine", "lars_param_groups", "scaled_lr", "steps_for"]
