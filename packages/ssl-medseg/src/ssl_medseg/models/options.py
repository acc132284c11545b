"""Options of the network."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from contrastive_core.errors import UserError


@dataclass(frozen=True)
class NetworkOptions:
    """The network that maps slices to class scores.

    Attributes:
        name: ``unet``, the paper's; or ``monai:NAME``, a network of ``monai.networks.nets`` such as ``monai:DynUNet``.
        width: channels at full resolution, 16 in the paper; deeper levels have multiples of it. Half the width takes
            about a third of the time on a CPU.
        arguments: further arguments of MONAI's network, by name; BasicUNet, DynUNet, FlexibleUNet and UNet need none.
    """

    name: str = "unet"
    width: int = 16
    arguments: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.width, bool) or not isinstance(self.width, int) or self.width < 1:
            raise UserError(f"network.width is {self.width!r}; expected a whole number of at least 1")
        if self.name != "unet" and not self.name.startswith("monai:"):
            raise UserError(f"no network named {self.name!r}; use unet, or monai:NAME such as monai:DynUNet")
        if self.name == "unet" and self.arguments:
            raise UserError(
                f"network.arguments ({', '.join(self.arguments)}) are for monai:NAME; unet takes width alone"
            )
