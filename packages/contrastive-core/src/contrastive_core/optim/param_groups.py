"""Which parameters LARS adapts and decays, and which it treats as plain momentum SGD."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

_NORM_LAYERS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def lars_param_groups(
    module: nn.Module, weight_decay: float = 0.0, *, exclude: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Parameter groups for `LARS` as in the papers: norm layers and biases are neither decayed nor adapted.

    The first group holds the weights (adapted, with `weight_decay`), the second everything left out (`adapt=False`, no
    decay: plain momentum SGD at the full lr). Left out are the parameters of batch, instance, layer, group and RMS norm
    layers, every parameter with "bias" in its own name, and all of the submodules named in `exclude`. A group without
    parameters is not returned. Every parameter of the module is in exactly one group, frozen ones included.

    The norm layers are found by type, so a conversion to synchronised BN before or after makes no difference.

    Args:
        module: the model, wrapped (DDP) or not.
        weight_decay: decay of the first group.
        exclude: dotted names of submodules to leave out as well. SimCLRv2 leaves out the supervised head trained beside
            the projection head ("head_supervised" in its code) and decays its kernel in the loss; a group
            `{"params": [head.weight], "weight_decay": wd, "adapt": False}` does the same.

    Raises:
        ValueError: a name in `exclude` that is no submodule with parameters.

    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    >>> [(len(group["params"]), group["weight_decay"], group["adapt"]) for group in lars_param_groups(model, 1e-6)]
    [(1, 1e-06, True), (3, 0.0, False)]
    """
    for name in exclude:
        if not any(parameter.startswith(f"{name}.") for parameter, _ in module.named_parameters()):
            found = [child for child, _ in module.named_modules() if child]
            raise ValueError(f"lars_param_groups: got exclude={name!r}, expected one of the submodules {found}")
    in_norms = {
        id(p) for layer in module.modules() if isinstance(layer, _NORM_LAYERS) for p in layer.parameters(recurse=False)
    }
    weights: list[nn.Parameter] = []
    left_out: list[nn.Parameter] = []
    for name, p in module.named_parameters():
        plain = (
            id(p) in in_norms
            or "bias" in name.rsplit(".", 1)[-1]
            or any(name.startswith(f"{submodule}.") for submodule in exclude)
        )
        (left_out if plain else weights).append(p)
    groups = [
        {"params": weights, "weight_decay": weight_decay, "adapt": True},
        {"params": left_out, "weight_decay": 0.0, "adapt": False},
    ]
    return [group for group in groups if group["params"]]
