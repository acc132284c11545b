"""LARS, the layer-wise adaptive optimiser of SimCLR, and its parameter groups.

LARS follows the TensorFlow code of SimCLR: momentum SGD that scales the step of each weight by ||w|| / ||g||. Biases,
gains of norm layers and other one-dimensional parameters are neither adapted nor decayed.
"""

from __future__ import annotations

import math
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from numbers import Real
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.optim.optimizer import Optimizer, ParamsT

from contrastive_core.text import some_of

_NORM_LAYERS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
# Not `Optimizer.defaults`, to which torch adds settings of its own when a state is loaded.
_SETTINGS = ("lr", "momentum", "weight_decay", "trust_coefficient", "nesterov", "adapt", "foreach")
_WEIGHT_LAYERS = (nn.Linear, nn.Bilinear, _ConvNd, nn.Embedding, nn.EmbeddingBag, nn.MultiheadAttention, nn.RNNBase)


def lars_param_groups(
    module: nn.Module, weight_decay: float = 0.0, *, exclude: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Build parameter groups for `LARS` as in the papers: only weight matrices and kernels are decayed and adapted.

    The first group holds the weights, which are adapted and decayed with `weight_decay`. The second group holds the
    excluded parameters, which are trained by plain momentum SGD at the full lr (`adapt=False`, no decay):

    - the parameters of batch, instance, layer, group and RMS norm layers, which are identified by type, so that
      conversion to synchronised BN makes no difference;
    - parameters of at most one dimension, not counting dimensions of size 1: biases, gains of custom norm layers, PReLU
      slopes, layer scales [D, 1, 1], class tokens [1, 1, D], learned temperatures. The weight of a linear,
      convolutional or embedding layer of torch counts as a weight whatever its shape;
    - parameters whose own name contains "bias" or "token";
    - parameters that a module names in a method `no_weight_decay()`, as timm's models do (position embeddings);
    - all parameters of the submodules named in `exclude`.

    The released code excludes norm layers and biases, the only such parameters of a ResNet. The trust ratio suits
    weights with many randomly initialised entries: a gain of 1 would change by 0.001 lr per step whatever its gradient,
    and decay would pull a learned temperature to 0. Frozen parameters are included. Every parameter of the module is in
    exactly one group, and empty groups are not returned.

    Args:
        module: Model, wrapped (DDP) or not.
        weight_decay: Weight decay of the first group.
        exclude: Dotted names of further submodules to exclude. SimCLRv2 excludes the supervised head trained alongside
            the projection head ("head_supervised" in its code) and decays its kernel in the loss; a group
            `{"params": [head.weight], "weight_decay": wd, "adapt": False}` does the same.

    Returns:
        One or two parameter groups for `LARS`.

    Raises:
        ValueError: A name in `exclude` does not belong to a submodule with parameters.

    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    >>> [(len(group["params"]), group["weight_decay"], group["adapt"]) for group in lars_param_groups(model, 1e-6)]
    [(1, 1e-06, True), (3, 0.0, False)]
    """
    for name in exclude:
        if not any(parameter.startswith(f"{name}.") for parameter, _ in module.named_parameters()):
            submodules = [child for child, _ in module.named_modules() if child]
            raise ValueError(f"lars_param_groups: got exclude={name!r}, expected one of the submodules {submodules}")
    left_out_of = _plain_parameters(module)
    weights: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, p in module.named_parameters():
        is_excluded = any(name.startswith(f"{submodule}.") for submodule in exclude)
        (plain if is_excluded or id(p) in left_out_of else weights).append(p)
    groups = [
        {"params": weights, "weight_decay": weight_decay, "adapt": True},
        {"params": plain, "weight_decay": 0.0, "adapt": False},
    ]
    return [group for group in groups if group["params"]]


class LARS(Optimizer):
    """Momentum SGD with layer-wise learning rates, for training SimCLR with batches of thousands.

    For every parameter w with gradient g and momentum buffer v (zeros at the start):

        g <- g + weight_decay * w
        t <- trust_coefficient * ||w|| / ||g||     if adapt, ||w|| > 0 and ||g|| > 0; otherwise 1
        v <- momentum * v + lr * t * g
        w <- w - v                                 nesterov: w - (momentum * v + lr * t * g)

    This is the rule of the released TensorFlow code, whose details matter: lr and t are inside the buffer (a later
    change of lr does not rescale old momentum), the denominator has no epsilon and contains the decay, and the
    adaptation also applies at weight decay 0. Other PyTorch implementations of LARS differ in one or more of these.

    A parameter group can set its own lr, momentum, weight_decay, trust_coefficient, nesterov and `adapt` (default
    True). With `adapt=False` the group is trained by plain momentum SGD at the full lr. The papers exclude norm layers
    and biases from both decay and adaptation; `lars_param_groups` builds the corresponding groups. Parameters passed
    without groups are all adapted and decayed, with a warning if they contain biases or gains next to weights.

    Args:
        params: Parameters or parameter groups, as for every torch optimiser.
        lr: Learning rate; 0.3 * batch / 256 or 0.075 * sqrt(batch) in the papers. See `scaled_lr` and `WarmupCosine`.
        momentum: Momentum, in [0, 1).
        weight_decay: Weight decay, at least 0; 1e-6 in SimCLR, 1e-4 in SimCLRv2, 0 for its fine-tuning.
        trust_coefficient: Factor of the trust ratio, above 0.
        nesterov: Whether to use Nesterov momentum.
        foreach: Whether to update all parameters with a few kernels, or one parameter after another, which keeps a
            parameter in the CPU's cache. None: True on CUDA, False on other devices. Results agree up to rounding.
            Parameters of `fully_shard` are always updated one after another.

    The optimiser stores one buffer per parameter; `foreach` holds a copy of the gradients during a step. No step waits
    for the device. Parameters may be sharded by `torch.distributed.fsdp.fully_shard`, whose norms are those of whole
    weights, but not by FullyShardedDataParallel or ZeRO, because the norm of a shard is not the norm of its weight.

    Raises:
        ValueError: A setting is outside its range.
        TypeError: A parameter is complex, or a setting is not a number.
        RuntimeError: A gradient is sparse.

    Reference: You et al. 2017, "Large Batch Training of Convolutional Networks"; Chen et al. 2020, "A Simple Framework
    for Contrastive Learning of Visual Representations", section 2.3 and its released code.

    >>> from contrastive_core import lars_param_groups
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.BatchNorm1d(8))
    >>> optimizer = LARS(lars_param_groups(model, weight_decay=1e-6), lr=0.3)
    >>> model(torch.randn(4, 8)).square().sum().backward()
    >>> optimizer.step()
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor,
        *,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 0.001,
        nesterov: bool = False,
        foreach: bool | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust_coefficient": trust_coefficient,
            "nesterov": nesterov,
            "adapt": True,
            "foreach": foreach,
        }
        if isinstance(params, nn.Module):
            raise TypeError("LARS: got a module, expected parameters; pass lars_param_groups(module, weight_decay)")
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group after checking its settings."""
        _check_settings({**self.defaults, **param_group})
        has_adapt = "adapt" in param_group
        super().add_param_group(param_group)
        flat = [p for p in self.param_groups[-1]["params"] if p.ndim <= 1]
        if not has_adapt and 0 < len(flat) < len(self.param_groups[-1]["params"]):
            warnings.warn(
                f"LARS: {len(flat)} of {len(self.param_groups[-1]['params'])} parameters have at most one dimension "
                "(biases, gains of norm layers) and are adapted and decayed like weights, which the papers exclude; "
                "pass lars_param_groups(module, weight_decay), or set adapt in the parameter group",
                stacklevel=4,
            )
        if any(p.is_complex() for p in self.param_groups[-1]["params"]):
            del self.param_groups[-1]
            raise TypeError("LARS: got a complex parameter, expected real ones; use torch.view_as_real")

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update every parameter that has a gradient; return the result of the closure, if given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        # All gradients are checked first, so that an unusable one leaves every parameter as it was.
        updates = [
            (params, [_dense_gradient(p) for p in params], group)
            for group in self.param_groups
            for params in _by_device_and_dtype([p for p in group["params"] if p.grad is not None])
        ]
        for params, grads, group in updates:
            together = params[0].is_cuda if group["foreach"] is None else group["foreach"]
            together = together and not _is_sharded(params[0])  # torch cannot compute the norms of several DTensors
            update = _update_together if together else _update_one_by_one
            update(params, grads, [self._buffer(p) for p in params], group)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned.

        Raises:
            ValueError: The state belongs to another optimiser or to parameters of other shapes. Nothing is changed.
        """
        if not isinstance(state_dict, dict) or not {"state", "param_groups"} <= state_dict.keys():
            content = (
                f"the keys {some_of(state_dict)}" if isinstance(state_dict, dict) and state_dict else repr(state_dict)
            )
            raise ValueError(
                f"LARS: found {content[:200]}, expected what `state_dict` returned, with the keys state and "
                "param_groups"
            )
        for number, group in enumerate(state_dict["param_groups"]):
            if missing := [name for name in _SETTINGS if name not in group]:
                strange = [name for name in group if name not in _SETTINGS and name != "params"]
                others = f" and has {', '.join(strange)}" if strange else ""
                raise ValueError(
                    f"LARS: parameter group {number} of the state lacks {', '.join(missing)}{others}, so it was not "
                    "saved by this optimiser, whose momentum holds steps rather than gradients; start LARS without a "
                    "state, or load the state into the optimiser that saved it"
                )
        keys = [key for group in state_dict["param_groups"] for key in group["params"]]
        params = [p for group in self.param_groups for p in group["params"]]
        for number, (key, p) in enumerate(zip(keys, params, strict=False)):
            state = state_dict["state"].get(key, {})
            if strange := [name for name in state if name != "momentum_buffer"]:
                raise ValueError(
                    f"LARS: the state of parameter {number} holds {', '.join(strange)}, expected only a "
                    "momentum_buffer; it was not saved by this optimiser"
                )
            buffer = state.get("momentum_buffer")
            if buffer is not None and buffer.shape != p.shape:
                raise ValueError(
                    f"LARS: the momentum of parameter {number} has shape {list(buffer.shape)}, expected "
                    f"{list(p.shape)}; the state belongs to another model, or the parameters are in another order"
                )
        super().load_state_dict(state_dict)

    def _buffer(self, p: Tensor) -> Tensor:
        state = self.state[p]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(p)
        buffer: Tensor = state["momentum_buffer"]
        return buffer


def _update_one_by_one(params: list[Tensor], grads: list[Tensor], buffers: list[Tensor], group: dict[str, Any]) -> None:
    momentum, decay, rate = group["momentum"], group["weight_decay"], group["lr"]
    for p, gradient, buffer in zip(params, grads, buffers, strict=True):
        g = gradient.add(p, alpha=decay) if decay else gradient
        buffer.mul_(momentum)
        if group["adapt"]:
            dtype = _norm_dtype(p)
            norms = torch.linalg.vector_norm(p, dtype=dtype), torch.linalg.vector_norm(g, dtype=dtype)
            rate = group["lr"] * _trust_ratio(*norms, group["trust_coefficient"])
            buffer.addcmul_(g, rate)
        else:
            buffer.add_(g, alpha=rate)
        p.sub_((g * rate).add_(buffer, alpha=momentum) if group["nesterov"] else buffer)


def _update_together(params: list[Tensor], grads: list[Tensor], buffers: list[Tensor], group: dict[str, Any]) -> None:
    momentum, decay, rates = group["momentum"], group["weight_decay"], group["lr"]
    # Copy in both cases, because gradients belong to the caller.
    steps = torch._foreach_add(grads, params, alpha=decay) if decay else torch._foreach_mul(grads, 1.0)
    if group["adapt"]:
        dtype = _norm_dtype(params[0])
        norms = torch.stack(torch._foreach_norm(params, 2, dtype)), torch.stack(torch._foreach_norm(steps, 2, dtype))
        rates = (group["lr"] * _trust_ratio(*norms, group["trust_coefficient"])).unbind()
    torch._foreach_mul_(steps, rates)
    torch._foreach_mul_(buffers, momentum)
    torch._foreach_add_(buffers, steps)
    if group["nesterov"]:
        torch._foreach_add_(steps, buffers, alpha=momentum)
    torch._foreach_sub_(params, steps if group["nesterov"] else buffers)


def _trust_ratio(weight_norm: Tensor, gradient_norm: Tensor, coefficient: float) -> Tensor:
    """Return the trust ratio, coefficient ||w|| / ||g||; 1 if either norm is 0."""
    is_defined = (weight_norm > 0) & (gradient_norm > 0)
    return torch.where(is_defined, coefficient * weight_norm / gradient_norm, 1.0)


def _norm_dtype(p: Tensor) -> torch.dtype:
    # The sum of squares of a float16 weight overflows at a norm of 256.
    return torch.promote_types(p.dtype, torch.float32)


def _dense_gradient(p: Tensor) -> Tensor:
    if p.grad is None or p.grad.layout != torch.strided:
        raise RuntimeError(
            "LARS: got a sparse gradient, expected a dense one; build the layer with sparse=False, or give its "
            "parameters to another optimiser (torch.optim.SparseAdam)"
        )
    return p.grad


def _by_device_and_dtype(params: list[Tensor]) -> Iterable[list[Tensor]]:
    kinds: dict[tuple[torch.device, torch.dtype, bool], list[Tensor]] = defaultdict(list)
    for p in params:
        kinds[p.device, p.dtype, _is_sharded(p)].append(p)
    return kinds.values()


def _is_sharded(p: Tensor) -> bool:
    return hasattr(p, "device_mesh")  # a DTensor, whose class takes long to import


def _check_settings(group: dict[str, Any]) -> None:
    for name in ("lr", "momentum", "weight_decay", "trust_coefficient"):
        is_single = isinstance(group[name], Tensor) and group[name].numel() == 1
        if not is_single and (isinstance(group[name], bool) or not isinstance(group[name], Real)):
            raise TypeError(f"LARS: got {name}={group[name]!r}, expected a number")
    expected = {
        "lr": (0 <= group["lr"] < math.inf, "a finite number, at least 0"),
        "momentum": (0 <= group["momentum"] < 1, "a number in [0, 1)"),
        "weight_decay": (0 <= group["weight_decay"] < math.inf, "a finite number, at least 0"),
        "trust_coefficient": (0 < group["trust_coefficient"] < math.inf, "a finite number above 0"),
        "nesterov": (not group["nesterov"] or group["momentum"] > 0, "a momentum above 0 with it"),
    }
    for name, (holds, what) in expected.items():
        if not holds:
            raise ValueError(f"LARS: got {name}={group[name]}, expected {what}")


def _plain_parameters(module: nn.Module) -> set[int]:
    """Return the ids of the parameters that are never decayed or adapted, whatever `exclude` contains."""
    plain: set[int] = set()
    for layer in module.modules():
        exempt = getattr(layer, "no_weight_decay", None)
        exempt_names = exempt() if callable(exempt) else ()
        plain |= {id(p) for name, p in layer.named_parameters() if name in exempt_names}
        for name, p in layer.named_parameters(recurse=False):
            is_weight = isinstance(layer, _WEIGHT_LAYERS) and name.endswith("weight")
            one_dimensional = p.ndim <= 1 or (p.numel() == max(p.shape) and not is_weight)
            if isinstance(layer, _NORM_LAYERS) or "bias" in name or "token" in name or one_dimensional:
                plain.add(id(p))
    return plain
