"""Which network segments."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from contrastive_core.errors import UserError

OWN = ("unet", "plain-unet")
"""Networks of this package, by name."""


@dataclass(frozen=True)
class NetworkOptions:
    """The network that maps slices to class scores.

    Attributes:
        name: ``plain-unet``, five levels with instance norm and leaky ReLU as in nnU-Net; ``unet``, the paper's, six
            levels with batch norm; ``monai:NAME``, a network of ``monai.networks.nets`` such as ``monai:DynUNet``; or
            ``auto``, set by the recipe.
        width: Channels at full resolution; deeper levels have multiples of it. Half the width takes about a third of
            the time on a CPU. 0: set by recipe and effort.
        arguments: Further arguments of MONAI's network, by name; BasicUNet, DynUNet, FlexibleUNet and UNet need none.
    """

    name: str = "unet"
    width: int = 16
    arguments: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.width, bool) or not isinstance(self.width, int) or self.width < 0:
            raise UserError(
                f"network.width is {self.width!r}; expected a whole number of at least 1, or 0 to let the recipe choose"
            )
        if self.name not in (*OWN, "auto") and not self.name.startswith("monai:"):
            raise UserError(
                f"no network named {self.name!r}; use plain-unet, unet, or monai:NAME such as monai:DynUNet"
            )
        if self.name in OWN and self.arguments:
            raise UserError(
                f"network.arguments ({', '.join(self.arguments)}) are for monai:NAME; {self.name} takes width alone"
            )


AUTO = NetworkOptions(name="auto", width=0)
"""The network that the recipe and the effort choose."""
