"""Exponential moving average of a network's weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


class MovingAverage(AveragedModel):
    """Copy of a network with an exponential moving average of its weights: w <- decay * w + (1 - decay) * w_network.

    The first update copies the weights. Values and state are those of torch's `AveragedModel` with
    `get_ema_multi_avg_fn`, which reads the number of updates from the GPU in every update; this class does not.

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
        self._follow: Any = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        super().__init__(network, multi_avg_fn=self._follow, use_buffers=use_buffers)
        self.requires_grad_(False)
        self._has_begun: bool | None = False
        self.register_load_state_dict_post_hook(_read_again)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Update the average with the present weights of the network."""
        if self._has_begun is None:
            # Only after loading a state, because reading the number may make the host wait.
            self._has_begun = bool(self.n_averaged > 0)
        pairs: list[tuple[Tensor, Tensor]] = list(zip(self.module.parameters(), model.parameters(), strict=True))
        buffers: list[tuple[Tensor, Tensor]] = list(zip(self.module.buffers(), model.buffers(), strict=True))
        pairs += buffers if self.use_buffers else []
        if self._has_begun:
            groups: dict[tuple[torch.device, torch.dtype], tuple[list[Tensor], list[Tensor]]] = {}
            for own, other in pairs:
                mine, others = groups.setdefault((own.device, own.dtype), ([], []))
                mine.append(own.detach())
                others.append(other.detach().to(own.device))
            for mine, others in groups.values():
                self._follow(mine, others, None)
        for own, other in ([] if self._has_begun else pairs) + ([] if self.use_buffers else buffers):
            own.detach().copy_(other.detach())
        self._has_begun = True
        self.n_averaged += 1


def _read_again(average: nn.Module, _: object) -> None:
    average._has_begun = None  # type: ignore[assignment]
