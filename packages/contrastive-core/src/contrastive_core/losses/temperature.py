"""The temperature of a loss: a number, or a learned one, whose gradient costs a pass over the rows."""

from __future__ import annotations

import torch
from torch import Tensor

from contrastive_core.losses.rows import check_temperature


class Temperature:
    """One call's temperature.

    The similarities' operators take it as a number. Where it is learned, its gradient comes by way of the rows: with
    f = sqrt(t0 / t), where t0 = t is held constant, S = (f z_i . f z_j) / t0 is the same number and dS/dt = -S / t.

    Args:
        name: of the loss, for errors.
        given: positive; a tensor holding one number is learned if it requires a gradient.

    Raises:
        TypeError, ValueError: as :func:`check_temperature`; a tensor of several numbers.
    """

    def __init__(self, name: str, given: float | Tensor) -> None:
        check_learned_temperature(name, given)
        self.given: float | Tensor = given.double().reshape(()) if isinstance(given, Tensor) else given
        self.value = float(given.detach()) if isinstance(given, Tensor) else given

    @property
    def scale(self) -> float:
        """One over the temperature, as a number."""
        return 1 / self.value

    def link(self, rows: Tensor) -> Tensor:
        """The rows, such that their products with one another pass a gradient to the temperature."""
        if not isinstance(self.given, Tensor) or not self.given.requires_grad:
            return rows
        return rows * (self.given.detach() / self.given).sqrt().to(rows.device, rows.dtype)

    def divide(self, similarities: Tensor) -> Tensor:
        """Similarities over the temperature, with its gradient."""
        if isinstance(self.given, Tensor):
            return similarities / self.given.to(similarities.device, similarities.dtype)
        return similarities / self.given


def check_learned_temperature(name: str, given: float | Tensor) -> None:
    """As :func:`check_temperature`, which a tensor holding one number passes too."""
    if isinstance(given, Tensor) and given.is_floating_point():
        if given.numel() != 1:
            raise ValueError(f"{name}: temperature has shape {list(given.shape)}, expected one number")
        check_temperature(name, float(given.detach()))
    else:
        check_temperature(name, given)  # type: ignore[arg-type] # which refuses other tensors


def shown(given: float | Tensor) -> str:
    """For a module's `extra_repr`."""
    return f"{given.item():g}, learned" if isinstance(given, torch.nn.Parameter) else f"{given}"
