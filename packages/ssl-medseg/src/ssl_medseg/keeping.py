"""Which weights of a run become its model: the best on validation, or the last; of the network, or of its average."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


class BestWeights:
    """The weights with the highest score so far; track it, so that a resumed run knows them too.

    Attributes:
        score: the highest; None before the first.
        step: steps that were done when they had it.
    """

    def __init__(self) -> None:
        self.score: float | None = None
        self.step = 0
        self._weights: dict[str, Tensor] = {}

    def offer(self, score: float, *, step: int, network: nn.Module) -> bool:
        """Keep a copy of the weights if they score higher than all before; of equal ones the first stay."""
        if self.score is not None and score <= self.score:
            return False
        self.score, self.step = score, step
        self._weights = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
        return True

    def give(self, network: nn.Module) -> None:
        """Put the best weights into the network, if there are any."""
        if self._weights:
            network.load_state_dict(self._weights)

    def reset(self) -> None:
        """Forget them: a new round begins."""
        self.score, self.step, self._weights = None, 0, {}

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"score": self.score, "step": self.step, "weights": dict(self._weights)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """From a checkpoint."""
        self.score, self.step = state["score"], int(state["step"])
        self._weights = dict(state["weights"])


def moving_average(network: nn.Module, decay: float) -> AveragedModel:
    """An exponential moving average of weights and batch norm statistics, `decay` of it staying at every update.

    ``average.update_parameters(network)`` after every step; ``average.module`` is the averaged network. Track it. The
    first update copies the network.
    """
    average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)  # type: ignore[no-untyped-call]
    return average.requires_grad_(False)
