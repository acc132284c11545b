"""Exponential moving average of a network's weights."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


class MovingAverage(AveragedModel):
    """Copy of a network with an exponential moving average of its weights: w <- decay * w + (1 - decay) * w_network.

    The first update copies the weights. Values and state are those of torch's `AveragedModel` with
    `get_ema_multi_avg_fn`, which reads the number of updates from the GPU in every update; this class does not.
    Tensors that have no average are copied: integers, such as indices of positions, which would be rounded to others,
    and buffers with infinite values, such as attention masks, which would become NaN.

    Args:
        network: Network to copy and average.
        decay: Weight of the previous average in an update, in [0, 1].
        use_buffers: Whether to average buffers, such as batch statistics; otherwise they are copied.

    Attributes:
        module: Averaged network; its parameters require no gradient.

    >>> network = nn.Linear(1, 1, bias=False)
    >>> average = MovingAverage(network, decay=0.75)
    >>> for weight in (0.0, 4.0):
    ...     _ = nn.init.constant_(network.weight, weight)
    ...     average.update_parameters(network)
    >>> average.module.weight.item()
    1.0
    """

    def __init__(self, network: nn.Module, decay: float, *, use_buffers: bool = True) -> None:
        self._decay = decay
        self._follow: Any = functools.partial(_follow, decay)  # torch's function itself cannot be pickled
        super().__init__(network, multi_avg_fn=self._follow, use_buffers=use_buffers)
        self.requires_grad_(False)
        self._has_begun: bool | None = False
        # Looked at once, because reading values may make the host wait.
        self._copied = {
            name
            for name, value in self.module.named_buffers()
            if not use_buffers or (_is_real(value) and not value.is_meta and bool(value.isinf().any()))
        }
        self.register_load_state_dict_post_hook(_read_again)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Update the average with the present weights of the network."""
        if self._has_begun is None:
            # Only after loading a state, because reading the number may make the host wait.
            self._has_begun = bool(self.n_averaged > 0)
        parameters = zip(self.module.parameters(), model.parameters(), strict=True)
        buffers = zip(self.module.named_buffers(), model.buffers(), strict=True)
        pairs: list[tuple[Tensor, Tensor, bool]] = [(own, other, True) for own, other in parameters]
        pairs += [(own, other, name not in self._copied) for (name, own), other in buffers]
        # By type, because buffers are plain tensors also where parameters are sharded (DTensor).
        groups: dict[tuple[type, torch.device, torch.dtype], tuple[list[Tensor], list[Tensor]]] = {}
        for own, other, is_averaged in pairs:
            if not (self._has_begun and is_averaged and _is_real(own)):
                own.detach().copy_(other.detach())
                continue
            averages, others = groups.setdefault((type(own.detach()), own.device, own.dtype), ([], []))
            averages.append(own.detach())
            others.append(other.detach().to(own.device))
        for (_, _, precision), (averages, others) in groups.items():
            if torch.finfo(precision).eps > (1 - self._decay) / 10:
                warnings.warn(
                    f"the moving average has weights of {precision} and a decay of {self._decay:g}: most of its "
                    "updates are smaller than the rounding, so that it stays near its first weights; keep the weights "
                    "in float32 (precision bf16-mixed instead of bf16-true)",
                    stacklevel=2,
                )
            self._follow(averages, others, None)
        self._has_begun = True
        self.n_averaged += 1


def _follow(decay: float, *arguments: Any) -> None:
    get_ema_multi_avg_fn(decay)(*arguments)  # type: ignore[no-untyped-call]


def _is_real(value: Tensor) -> bool:
    return value.is_floating_point() or value.is_complex()


def _read_again(average: nn.Module, _: object) -> None:
    average._has_begun = None  # type: ignore[assignment]
