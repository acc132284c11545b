"""Learning-rate schedule of SimCLR: linear warm-up, then cosine decay to zero."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.optimizer import Optimizer


def half_cosine(share: float) -> float:
    """Compute the factor (1 + cos(pi share)) / 2 of a cosine decay, where `share` is the completed fraction.

    >>> half_cosine(0.0), half_cosine(0.5), half_cosine(1.0)
    (1.0, 0.5, 0.0)
    """
    return (1 + math.cos(math.pi * share)) / 2


class WarmupCosine(LRScheduler):
    """Linear warm-up and cosine decay of every group's learning rate.

        start_lr + (peak_lr - start_lr) * step / warmup_steps                                  while step < warmup_steps
        peak_lr / 2 * (1 + cos(pi * (step - warmup_steps) / (total_steps - warmup_steps)))     until total_steps
        0                                                                                      afterwards

    Call `step()` after each `optimizer.step()`. In the formula, `step` is the number of updates already made. As in the
    released code, the first update therefore has lr 0 and changes only the statistics of batch normalisation. With
    `warmup_steps=0` the first update has the peak lr.

    `state_dict()` contains only numbers and is sufficient for a checkpoint, because `load_state_dict` also restores the
    learning rates of the groups.

    Args:
        optimizer: Any torch optimiser; its lr is overwritten immediately.
        peak_lr: Learning rate at the end of the warm-up, one number or one per parameter group.
        warmup_steps: Number of updates in the warm-up, 0 for none; see `steps_for`.
        total_steps: Number of updates in the whole run.
        start_lr: Learning rate at the start of the warm-up, one number or one per group; SuNCEt starts at 0.6 for a
            peak of 4.8.

    Raises:
        ValueError: A rate is negative, the warm-up is not shorter than the run, or the number of rates differs from the
            number of groups.

    Reference: Chen et al. 2020, "A Simple Framework for Contrastive Learning of Visual Representations", section 2.3.

    >>> import torch
    >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    >>> schedule = WarmupCosine(optimizer, peak_lr=4.8, warmup_steps=2, total_steps=6)
    >>> for _ in range(4):
    ...     print(round(schedule.get_last_lr()[0], 3))
    ...     optimizer.step()
    ...     schedule.step()
    0.0
    2.4
    4.8
    4.097
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        peak_lr: float | Sequence[float],
        warmup_steps: int,
        total_steps: int,
        start_lr: float | Sequence[float] = 0.0,
    ) -> None:
        if not 0 <= warmup_steps < total_steps:
            raise ValueError(
                f"WarmupCosine: got warmup_steps={warmup_steps} and total_steps={total_steps}, "
                "expected 0 <= warmup_steps < total_steps; train longer or warm up for fewer steps"
            )
        self.warmup_steps, self.total_steps = warmup_steps, total_steps
        self.peak_lr = _per_group("peak_lr", peak_lr, optimizer)
        self.start_lr = _per_group("start_lr", start_lr, optimizer)
        super().__init__(optimizer)

    def get_lr(self) -> list[float]:  # type: ignore[override]  # torch allows tensors, this schedule sets numbers
        """Return the learning rate of each group at the current step."""
        groups = len(self.optimizer.param_groups)
        if groups != len(self.peak_lr):
            raise ValueError(
                f"WarmupCosine: the optimizer has {groups} parameter groups, expected {len(self.peak_lr)} as when the "
                "schedule was created; create the schedule after add_param_group"
            )
        step, warmup = self.last_epoch, self.warmup_steps
        if step < warmup:
            return [
                start + (peak - start) * step / warmup for start, peak in zip(self.start_lr, self.peak_lr, strict=True)
            ]
        fraction = min(1.0, (step - warmup) / (self.total_steps - warmup))
        return [peak * half_cosine(fraction) for peak in self.peak_lr]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the schedule from `state_dict()` and set the groups' learning rates accordingly."""
        super().load_state_dict(state_dict)
        for group, lr in zip(self.optimizer.param_groups, self.get_lr(), strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(lr)
            else:
                group["lr"] = lr


class Steps(NamedTuple):
    """Numbers of updates."""

    total: int
    """Number of updates in the run."""
    warmup: int
    """Number of updates in the warm-up."""


def steps_for(epochs: int, samples: int, batch_size: int, *, warmup_epochs: float = 0.0) -> Steps:
    """Compute the numbers of updates in a run and in its warm-up, as in the released code.

        total = samples * epochs // batch_size + 1
        warmup = round(warmup_epochs * samples // batch_size)

    An incomplete last batch continues in the next epoch.

    Args:
        epochs: Number of passes over the data.
        samples: Number of images (not views) per epoch.
        batch_size: Number of images per update over all devices.
        warmup_epochs: Length of the warm-up in epochs; 10 in SimCLR.

    Raises:
        ValueError: A number is out of range.

    >>> steps_for(100, 1_281_167, 4096, warmup_epochs=10)
    Steps(total=31279, warmup=3127)
    """
    if epochs < 1 or samples < 1 or batch_size < 1 or warmup_epochs < 0:
        raise ValueError(
            f"steps_for: got epochs={epochs}, samples={samples}, batch_size={batch_size}, "
            f"warmup_epochs={warmup_epochs}, expected the first three at least 1 and the last at least 0"
        )
    return Steps(samples * epochs // batch_size + 1, round(warmup_epochs * samples // batch_size))


def scaled_lr(base: float, batch_size: int, rule: Literal["linear", "sqrt"] = "linear") -> float:
    """Scale the learning rate: base * batch_size / 256 ("linear") or base * sqrt(batch_size) ("sqrt").

    SimCLR uses 0.3 with the linear rule or 0.075 with the sqrt rule; both give 4.8 at batch size 4096. For smaller
    batches the sqrt rule gives the larger rate and works better in short runs.

    Args:
        base: Learning rate before scaling.
        batch_size: Number of images per update over all devices.
        rule: "linear" or "sqrt".

    Raises:
        ValueError: The rule is unknown, or the batch size is below 1.

    >>> scaled_lr(0.3, 4096), scaled_lr(0.075, 4096, "sqrt")
    (4.8, 4.8)
    """
    if batch_size < 1:
        raise ValueError(f"scaled_lr: got batch_size={batch_size}, expected at least 1")
    if rule == "linear":
        return base * batch_size / 256
    if rule == "sqrt":
        return base * math.sqrt(batch_size)
    raise ValueError(f"scaled_lr: got rule={rule!r}, expected 'linear' or 'sqrt'")


def _per_group(name: str, lr: float | Sequence[float], optimizer: Optimizer) -> list[float]:
    groups = len(optimizer.param_groups)
    rates = [float(rate) for rate in lr] if isinstance(lr, Sequence) else [float(lr)] * groups
    if len(rates) != groups or not all(0 <= rate < math.inf for rate in rates):
        raise ValueError(
            f"WarmupCosine: got {name}={lr}, expected one finite number of at least 0, or a list of {groups} such "
            "numbers, one per parameter group"
        )
    return rates
