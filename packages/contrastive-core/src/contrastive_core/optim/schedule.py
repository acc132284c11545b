"""The learning-rate schedule of SimCLR: linear warm-up, then half a cosine to zero."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.optimizer import Optimizer


class WarmupCosine(LRScheduler):
    """Sets every group's learning rate to the papers' schedule; call `step()` after each `optimizer.step()`.

        start_lr + (peak_lr - start_lr) * step / warmup_steps                                  while step < warmup_steps
        peak_lr / 2 * (1 + cos(pi * (step - warmup_steps) / (total_steps - warmup_steps)))     until total_steps
        0                                                                                      afterwards

    `step` counts the updates already made. As in the released code the first update therefore runs at lr 0 (it moves
    nothing but the statistics of batch normalisation). With `warmup_steps=0` the first update runs at the peak.

    A checkpoint needs `state_dict()` only: plain numbers; `load_state_dict` puts the groups' learning rates back too.

    Args:
        optimizer: any torch optimiser; its own lr is replaced from the start.
        peak_lr: one number, or one per parameter group.
        warmup_steps: updates of the warm-up, 0 for none; see `steps_for`.
        total_steps: updates of the whole run.
        start_lr: where the warm-up starts, one number or one per group; SuNCEt starts at 0.6 for a peak of 4.8.

    Raises:
        ValueError: negative rates, a warm-up as long as the run, or another number of rates than of groups.

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
                "expected 0 <= warm-up < total; train longer or warm up for fewer steps"
            )
        self.warmup_steps, self.total_steps = warmup_steps, total_steps
        self.peak_lr = _per_group("peak_lr", peak_lr, optimizer)
        self.start_lr = _per_group("start_lr", start_lr, optimizer)
        super().__init__(optimizer)

    def get_lr(self) -> list[float]:  # type: ignore[override]  # torch allows tensors, this schedule sets numbers
        """The learning rate of every group at the current step."""
        groups = len(self.optimizer.param_groups)
        if groups != len(self.peak_lr):
            raise ValueError(
                f"WarmupCosine: got {groups} parameter groups, expected the {len(self.peak_lr)} of the start; "
                "make the schedule after add_param_group"
            )
        step, warmup = self.last_epoch, self.warmup_steps
        if step < warmup:
            return [
                start + (peak - start) * step / warmup for start, peak in zip(self.start_lr, self.peak_lr, strict=True)
            ]
        done = min(1.0, (step - warmup) / (self.total_steps - warmup))
        return [peak * 0.5 * (1 + math.cos(math.pi * done)) for peak in self.peak_lr]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up the schedule where `state_dict()` left it, and sets the groups' learning rates accordingly."""
        super().load_state_dict(state_dict)
        for group, lr in zip(self.optimizer.param_groups, self.get_lr(), strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(lr)
            else:
                group["lr"] = lr


class Steps(NamedTuple):
    """Updates of a whole run and of its warm-up."""

    total: int
    warmup: int


def steps_for(epochs: int, samples: int, batch_size: int, *, warmup_epochs: float = 0.0) -> Steps:
    """Updates of a run, counted as in the released code: the last incomplete batch is carried over to the next epoch.

        total = samples * epochs // batch_size + 1
        warmup = round(warmup_epochs * samples // batch_size)

    Args:
        epochs: passes over the data.
        samples: images (not views) in the data.
        batch_size: images per update over all devices.
        warmup_epochs: length of the warm-up, 10 in SimCLR.

    Raises:
        ValueError: a number out of range.

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
    """The learning rate for a batch size: base * batch_size / 256 ("linear") or base * sqrt(batch_size) ("sqrt").

    In SimCLR 0.3 linear or 0.075 sqrt, the same 4.8 at 4096; below that the sqrt rule is the larger and does better in
    short runs. `batch_size` counts images over all devices.

    Raises:
        ValueError: an unknown rule, or a batch size below 1.

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
            f"WarmupCosine: got {name}={lr}, expected one finite number at least 0, or {groups}, one per group"
        )
    return rates
