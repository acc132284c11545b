"""Statistics of batch norm for one view: a network trained on several is tested on one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from contrastive_core.errors import UserError
from ssl_video.view_norm import ViewBatchNorm, views_in_batch


@dataclass
class _Moments:
    count: float
    mean: Tensor
    variance: Tensor  # biased


def recalibrate_bn(network: nn.Module, batches: Iterable[Tensor], *, view: str | None = None) -> int:
    """Replace the running statistics of every batch norm by those of these batches, in place.

    Each layer gets the mean and the (unbiased) variance over all positions of all batches together, its input being
    what the layers before it give in training mode, where they normalise by the batch. Nothing else changes: dropout
    is off, no gradient is computed, and the network is left in the mode it was in.

    Args:
        network: with batch norms, plain or of `split_batchnorm`.
        batches: what the network takes, ``[N, 3, T, H, W]``; a few dozen clips suffice for a small network. Batches of
            the size and kind used in training fit best.
        view: for a network with split statistics, whose they are; None: the first view's.

    Returns:
        How many clips were seen; 0 if the network has no batch norm.

    Raises:
        UserError: no batches.
    """
    norms = list(_norms(network, view))
    if not norms:
        return 0
    found: dict[_BatchNorm, _Moments] = {}
    handles = [norm.register_forward_pre_hook(_observer(found)) for norm in norms]
    modes = [(part, part.training) for part in network.modules()]
    kept = [(norm, norm.track_running_stats) for norm in norms]
    clips = 0
    try:
        network.eval()
        for norm in norms:
            norm.training, norm.track_running_stats = True, False  # normalise by the batch, remember nothing
        with torch.no_grad():
            for batch in batches:
                with views_in_batch(network, [(view, len(batch))] if view else []):
                    network(batch)
                clips += len(batch)
    finally:
        for handle in handles:
            handle.remove()
        for norm, tracked in kept:
            norm.track_running_stats = tracked
        for part, mode in modes:
            part.training = mode
    if not clips:
        raise UserError("batch norm cannot be recalibrated without clips; give some, or leave recalibration out")
    for norm, moments in found.items():
        _set(norm, moments)
    return clips


def _norms(network: nn.Module, view: str | None) -> Iterable[_BatchNorm]:
    inside: set[nn.Module] = set()
    for part in network.modules():
        if isinstance(part, ViewBatchNorm):
            inside.update(part.norms.values())
            norm = part.norms[view or next(iter(part.norms))]
            if isinstance(norm, _BatchNorm) and norm.running_mean is not None:
                yield norm
        elif isinstance(part, _BatchNorm) and part not in inside and part.running_mean is not None:
            yield part


def _observer(found: dict[_BatchNorm, _Moments]) -> Callable[[nn.Module, Any], None]:
    def observe(norm: nn.Module, inputs: Any) -> None:
        if not isinstance(norm, _BatchNorm):
            return
        x = inputs[0].detach().double()
        variance, mean = torch.var_mean(x, [d for d in range(x.ndim) if d != 1], correction=0)
        count = x.numel() / x.shape[1]
        before = found.get(norm)
        if before is None:
            found[norm] = _Moments(count, mean, variance)
            return
        # Of a union: within the parts, and of their means (Chan, Golub and LeVeque 1979).
        total = before.count + count
        joint = (before.count * before.mean + count * mean) / total
        spread = before.count * (before.variance + (before.mean - joint) ** 2) + count * (
            variance + (mean - joint) ** 2
        )
        found[norm] = _Moments(total, joint, spread / total)

    return observe


def _set(norm: _BatchNorm, moments: _Moments) -> None:
    if norm.running_mean is None or norm.running_var is None:
        return
    norm.running_mean.copy_(moments.mean)
    norm.running_var.copy_(moments.variance * moments.count / max(1.0, moments.count - 1))
