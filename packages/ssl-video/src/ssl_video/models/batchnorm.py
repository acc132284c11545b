"""Batch normalisation over several views: split statistics, and their recalibration for one view."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from contrastive_core.errors import UserError

_TYPES = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
Layout = Sequence[tuple[str, int]]


class ViewBatchNorm(nn.Module):
    """Batch norms of several views that share weight and bias.

    `views_in_batch` states which rows belong to which view. Outside of it all rows belong to the first view, so a
    trained network that is called like any other is one for that view. With one view this is an ordinary batch norm.
    """

    def __init__(self, norm: _BatchNorm, views: Sequence[str]) -> None:
        super().__init__()
        self.norms = nn.ModuleDict({view: _twin(norm) for view in views})
        self.layout: Layout | None = None

    def forward(self, x: Tensor) -> Tensor:
        """`x` of ``[N, C, ...]``, each view's rows normalised by that view's statistics."""
        if self.layout is None:
            first: Tensor = next(iter(self.norms.values()))(x)
            return first
        if len(self.layout) == 1:
            one: Tensor = self.norms[self.layout[0][0]](x)
            return one
        parts = torch.split(x, [rows for _, rows in self.layout])
        return torch.cat([self.norms[view](part) for (view, _), part in zip(self.layout, parts, strict=True)])


def split_batchnorm(network: nn.Module, views: Sequence[str]) -> nn.Module:
    """Give every batch norm in `network` statistics for each view, in place, and return `network`.

    Every view starts from the present statistics. The weights stay the same objects: an optimiser made before still
    trains them. Subclasses of batch norm are not changed, as they may compute something else.

    Raises:
        ValueError: `network` is itself a batch norm.
    """
    if type(network) in _TYPES:
        raise ValueError("split_batchnorm got a batch norm; expected a network that has some in it")
    split_already = {norm for part in network.modules() if isinstance(part, ViewBatchNorm) for norm in part.modules()}
    made: dict[nn.Module, ViewBatchNorm] = {}
    for parent in [part for part in network.modules() if part not in split_already]:
        for name, child in parent._modules.items():  # a norm that stands in two places stays one
            if isinstance(child, _TYPES) and type(child) in _TYPES:
                made.setdefault(child, ViewBatchNorm(child, views))
                setattr(parent, name, made[child])
    return network


def join_batchnorm(network: nn.Module, view: str) -> nn.Module:
    """Replace every `ViewBatchNorm` by the plain batch norm of one view, in place, for export; return `network`."""
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if isinstance(child, ViewBatchNorm):
                setattr(parent, name, child.norms[view])
    return network


@contextmanager
def views_in_batch(network: nn.Module, layout: Layout) -> Iterator[None]:
    """State the views of the rows of a batch, in order: ``[("rgb", 4), ("tg", 4)]``."""
    layout = [(view, rows) for view, rows in layout if rows]
    norms = [part for part in network.modules() if isinstance(part, ViewBatchNorm)]
    for norm in norms:
        norm.layout = layout
    try:
        yield
    finally:
        for norm in norms:
            norm.layout = None


@contextmanager
def labelling(network: nn.Module) -> Iterator[None]:
    """Let a network in training mode predict without changing its state.

    Batch norm uses the statistics of the batch and does not update its own, dropout is off, and no gradient is kept.
    """
    norms = [part for part in network.modules() if isinstance(part, _BatchNorm) and part.training]
    kept = [(norm, norm.track_running_stats) for norm in norms]
    dropping = [part for part in network.modules() if _drops(part) and part.training]
    for norm in norms:
        norm.track_running_stats = False
    for part in dropping:
        part.training = False
    try:
        with torch.no_grad():
            yield
    finally:
        for norm, before in kept:
            norm.track_running_stats = before
        for part in dropping:
            part.training = True


def _drops(module: nn.Module) -> bool:
    return isinstance(module, _DropoutNd) or type(module).__name__ in ("StochasticDepth", "DropPath")


def _twin(norm: _BatchNorm) -> _BatchNorm:
    """Make another batch norm with the same weight and bias, and a copy of the statistics."""
    twin = type(norm)(
        norm.num_features,
        eps=norm.eps,
        momentum=norm.momentum,  # None is the plain average
        affine=norm.affine,
        track_running_stats=norm.track_running_stats,
    )
    twin.weight, twin.bias = norm.weight, norm.bias
    for name, buffer in norm.named_buffers(recurse=False):
        setattr(twin, name, buffer.detach().clone())
    return twin.train(norm.training)


@dataclass
class _Moments:
    count: float
    mean: Tensor
    variance: Tensor  # biased


def recalibrate_bn(network: nn.Module, batches: Iterable[Tensor], *, view: str | None = None) -> int:
    """Replace the running statistics of every batch norm by those of these batches, in place.

    Each layer gets the mean and the (unbiased) variance over all positions of all batches together. The layers before
    it normalise by the batch, as in training. Nothing else changes: dropout is off, no gradient is computed, and the
    network keeps its mode.

    Args:
        network: Network with batch norms, plain or of `split_batchnorm`.
        batches: Inputs of the network ``[N, 3, T, H, W]``; a few dozen clips suffice for a small network. Batches of
            the size and kind used in training fit best.
        view: View whose statistics are replaced, for a network with split statistics; None: the first one.

    Returns:
        Number of clips seen; 0 if the network has no batch norm.

    Raises:
        UserError: There are no batches.
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
                with views_in_batch(network, [(view, len(batch))]) if view else nullcontext():
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
