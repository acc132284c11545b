"""The memory of SimCLRv2: a network that follows slowly, and a bank of what it has seen."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from contrastive_core.grad_cache import BatchNorm
from contrastive_core.memory_bank import MemoryBank
from ssl_vision.methods.simclr import SimCLR


class MomentumMemory:
    """A moving average of a SimCLR network, and a bank of the projections it made.

    Every step, after the loss and the optimiser's step:  theta_m <- decay theta_m + (1 - decay) theta,  and the
    projections g_m(f_m(view)) of the batch are added to the bank. `negatives` goes to ``nt_xent`` as `bank`:

        memory = MomentumMemory(network, size=65536)
        loss = nt_xent(z_a, z_b, memory.negatives, temperature=0.1)
        ...
        optimizer.step()
        memory.update(network, view_b)

    Our reading of SimCLRv2, section 2, whose released code has no memory. The moving average normalises by the batch
    that it sees, as the key network of MoCo does; over several processes by that of all, if the network was converted
    to synchronised batch norm before. It begins with the weights after the first step.

    Args:
        network: which is trained; it is copied.
        size: projections kept.
        decay: of the moving average.

    Reference: Chen et al. 2020, "Big Self-Supervised Models are Strong Semi-Supervised Learners", section 2; He et al.
    2020, "Momentum Contrast for Unsupervised Visual Representation Learning".
    """

    def __init__(self, network: SimCLR, *, size: int, decay: float = 0.999) -> None:
        follow = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        self._average = AveragedModel(network, multi_avg_fn=follow).requires_grad_(False).train()
        weight = next(network.head.parameters())
        self._bank = MemoryBank(size, network.head.out_features, device=weight.device, dtype=weight.dtype)

    @property
    def negatives(self) -> Tensor:
        """The projections kept ``[M, projection_dim]``, none before the first step."""
        return self._bank.rows

    @torch.no_grad()
    def update(
        self,
        network: SimCLR,
        images: Tensor,
        *,
        gather: bool = False,
        chunk_size: int | None = None,
        batch_norm: BatchNorm = "refuse",
    ) -> None:
        """Follow the network one step, and remember how the moving average projects these images.

        Args:
            network: as it is after the optimiser's step.
            images: ``[N, 3, H, W]``.
            gather: remember those of all processes.
            chunk_size: images the moving average's encoder sees at a time, as in `SimCLR`; None: all.
            batch_norm: of such chunks.
        """
        self._average.update_parameters(network)
        (keys,) = self._average(images, chunk_size=chunk_size, batch_norm=batch_norm)
        self._bank.add(keys, gather=gather)

    def state_dict(self) -> dict[str, Any]:
        """Moving average and bank."""
        return {"average": self._average.state_dict(), "bank": self._bank.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a state.

        Raises:
            RuntimeError, ValueError: of another network or size.
        """
        self._average.load_state_dict(state["average"])
        self._bank.load_state_dict(state["bank"])
