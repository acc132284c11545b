"""Batch normalisation over the union of the batches of all processes, on any device.

torch.nn.SyncBatchNorm does not support CPUs; this module computes the same with two small collectives per call.
"""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.autograd import Function
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm


class SyncBatchNorm(_BatchNorm):
    """Batch normalisation (nn.BatchNorm1d/2d/3d) with mean and variance over the batches of all processes.

        y = (x - mean) / sqrt(var + eps) * weight + bias

    Mean and biased variance are computed over all positions of all processes. The running variance uses the unbiased
    estimate, as nn.BatchNorm does on the union batch. The gradient of the input is that of the sum of the losses of all
    processes. The gradients of the parameters are those of each process, which DistributedDataParallel averages. Second
    derivatives are also those of the union batch. Without a process group, and in evaluation mode, the module equals
    nn.BatchNorm. Statistics are computed in float32 or better.

    Shape: [N, C] or [N, C, ...] with up to 3 further dimensions; N may differ between processes.

    Raises:
        ValueError: The input has another shape, the batch of a process is empty, or all batches together have only one
            value per channel.
    """

    def _check_input_dim(self, input: Tensor) -> None:  # noqa: A002 - torch's name
        if not 2 <= input.ndim <= 5:
            raise ValueError(
                f"SyncBatchNorm: got an input of shape {list(input.shape)}, expected 2 to 5 dimensions [N, C, ...]"
            )

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """Normalise `input`; the result has the same shape and type."""
        from_batch = self.training or self.running_mean is None
        if not from_batch or not dist.is_initialized() or dist.get_world_size() == 1:
            return super().forward(input)
        self._check_input_dim(input)
        output, mean, var, count = _UnionNorm.apply(input, self.weight, self.bias, self.eps)
        if self.training and self.track_running_stats:
            self._remember(mean, var * (count / (count - 1)))
        return output  # type: ignore[no-any-return]

    @torch.no_grad()
    def _remember(self, mean: Tensor, var: Tensor) -> None:
        if self.running_mean is None or self.running_var is None:
            return
        rate = self.momentum
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if rate is None:  # the mean over all batches so far
                rate = 1.0 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), float(rate or 0.0))
        self.running_var.lerp_(var.to(self.running_var.dtype), float(rate or 0.0))


def convert_sync_batchnorm(module: nn.Module) -> nn.Module:
    """Convert BatchNorm1d/2d/3d (and torch's SyncBatchNorm) in `module` to SyncBatchNorm in place; return `module`.

    Only the class of the objects changes; parameters, buffers, hooks, names in the state dictionary and references to
    the objects remain valid. Subclasses of the batch norms, which may compute something else, are not converted.
    """
    for part in module.modules():
        if type(part) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm):
            part.__class__ = SyncBatchNorm
    return module


class _UnionNorm(Function):
    """Normalised batch, and mean, biased variance and number of values over all processes."""

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        if x.shape[0] == 0:
            raise ValueError("SyncBatchNorm: got an empty batch on one process, expected at least one sample on each")
        precise = torch.promote_types(x.dtype, torch.float32)
        own_var, own_mean = torch.var_mean(x.to(precise), _all_but_channels(x), correction=0)
        own_count = own_mean.new_full((1,), x.numel() / x.shape[1], dtype=torch.float64)
        own = torch.cat([own_mean.double(), own_var.double(), own_count])
        parts = own.new_empty((dist.get_world_size(), own.numel()))
        dist.all_gather(list(parts.unbind()), own)
        means, variances, counts = parts[:, : x.shape[1]], parts[:, x.shape[1] : -1], parts[:, -1:]
        count = counts.sum()
        if count <= 1:
            raise ValueError("SyncBatchNorm: got one value per channel over all processes, expected at least two")
        # The variance of a union is that within the parts plus that of their means (Chan, Golub and LeVeque 1979).
        mean = (counts * means).sum(0) / count
        var = (counts * (variances + (means - mean).square())).sum(0) / count
        mean, var = mean.to(precise), var.to(precise)
        return F.batch_norm(x, mean, var, weight, bias, training=False, eps=eps), mean, var, count

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, weight, bias, ctx.eps = inputs
        _, mean, var, count = output
        ctx.mark_non_differentiable(mean, var, count)
        ctx.has_bias = bias is not None
        ctx.save_for_backward(x, weight, mean, var, count)
        ctx.save_for_forward(x, weight, mean, var, count)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, weight, mean, var, count = ctx.saved_tensors
        dims, shape = _all_but_channels(x), [1, -1] + [1] * (x.ndim - 2)
        values, grad = x.to(mean.dtype), grads[0].to(mean.dtype)
        if torch.is_grad_enabled():
            # For a second derivative, compute the statistics again as functions of the batches of all processes.
            mean = _sum_over_processes(values.sum(dims)) / count.to(mean.dtype)
            var = _sum_over_processes((values - mean.view(shape)).square().sum(dims)) / count.to(mean.dtype)
        inverse = torch.rsqrt(var + ctx.eps)
        normal = (values - mean.view(shape)) * inverse.view(shape)
        own_bias, own_weight = grad.sum(dims), (grad * normal).sum(dims)
        grad_x: Tensor | None = None
        if ctx.needs_input_grad[0]:
            sums = _sum_over_processes(torch.cat([own_bias, own_weight]))
            bias_mean, weight_mean = (sums / count.to(sums.dtype)).view(2, -1)
            scale = inverse if weight is None else inverse * weight
            grad_x = (grad - bias_mean.view(shape) - normal * weight_mean.view(shape)) * scale.view(shape)
            grad_x = grad_x.to(x.dtype)
        needs_weight, needs_bias = ctx.needs_input_grad[1:3]
        return grad_x, own_weight if needs_weight else None, own_bias if needs_bias else None, None

    @staticmethod
    def jvp(ctx: Any, x_tangent: Tensor, weight_tangent: Tensor | None, bias_tangent: Tensor | None, _: None) -> Any:
        x, weight, mean, var, count = ctx.saved_tensors
        dims, shape = _all_but_channels(x), [1, -1] + [1] * (x.ndim - 2)
        values = x.to(mean.dtype)
        dx = torch.zeros_like(values) if x_tangent is None else x_tangent.to(mean.dtype)
        inverse = torch.rsqrt(var + ctx.eps)
        centred = values - mean.view(shape)
        means = _sum_over_processes(torch.cat([dx.sum(dims), (centred * dx).sum(dims)])) / count.to(mean.dtype)
        mean_tangent, half_var_tangent = means.view(2, -1)
        normal = centred * inverse.view(shape)
        out = (dx - mean_tangent.view(shape)) * inverse.view(shape)
        out = out - normal * (half_var_tangent * inverse.square()).view(shape)
        out = out if weight is None else out * weight.view(shape)
        out = out if weight_tangent is None else out + normal * weight_tangent.view(shape)
        out = out if bias_tangent is None else out + bias_tangent.view(shape)
        return out.to(x.dtype), None, None, None

    @staticmethod
    def vmap(*_: Any) -> NoReturn:
        _refuse_vmap()


class _SumOverProcesses(Function):
    @staticmethod
    def forward(x: Tensor) -> Tensor:
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        del ctx, inputs, output  # linear: nothing to save

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _sum_over_processes(grad)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return _sum_over_processes(tangent)

    @staticmethod
    def vmap(*_: Any) -> NoReturn:
        _refuse_vmap()


def _sum_over_processes(x: Tensor) -> Tensor:
    total: Tensor = _SumOverProcesses.apply(x)
    return total


def _refuse_vmap() -> NoReturn:
    raise RuntimeError(
        "contrastive_core: torch.vmap (and jacrev, jacfwd and hessian, which use it) cannot run over SyncBatchNorm, "
        "whose processes exchange statistics; loop over the elements, or use torch.func.grad, vjp and jvp"
    )


def _all_but_channels(x: Tensor) -> list[int]:
    return [d for d in range(x.ndim) if d != 1]
