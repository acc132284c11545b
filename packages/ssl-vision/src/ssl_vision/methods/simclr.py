"""SimCLR: an encoder and a projection head, and SimCLRv2's momentum network with its memory of negatives."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from contrastive_core.grad_cache import BatchNorm, encode_in_chunks
from contrastive_core.heads import ProjectionHead
from contrastive_core.memory_bank import MemoryBank
from contrastive_core.optim.average import MovingAverage


class SimCLR(nn.Module):
    """Encoder ``f`` and projection head ``g`` of SimCLR (section 2.1), and of SuNCEt, which needs no other network.

    ``forward(view_a, view_b)`` returns the projections ``z_a, z_b = g(f(view_a)), g(f(view_b))`` of shape
    ``[N, projection_dim]``. All inputs pass through the network as one batch, in that order, so that batch norm sees
    them together as in the official code: both views of SimCLR, and with ``forward(view_a, view_b, labelled)`` the
    labelled images of SuNCEt. Train with ``contrastive_core.nt_xent(z_a, z_b)`` and ``contrastive_core.suncet(z, y)``;
    use ``model.encoder`` afterwards, whose features are better than the head's (section 4.2).

    With ``chunk_size`` the encoder processes that many images at a time, twice: this gives the same gradient with the
    memory of a chunk (see `contrastive_core.encode_in_chunks`, also for batch norm). The head, which is small, still
    processes the whole batch, also in its batch norm.

    Args:
        encoder: Encoder that maps ``[N, 3, H, W]`` to ``[N, encoder.feature_dim]``.
        projection_dim: Size of z; 128 in the paper.
        layers: Number of linear layers of the head; 2 in SimCLR, 3 in SimCLRv2.
    """

    def __init__(self, encoder: nn.Module, *, projection_dim: int = 128, layers: int = 2) -> None:
        super().__init__()
        feature_dim = encoder.feature_dim
        if not isinstance(feature_dim, int):
            raise TypeError(f"encoder.feature_dim must be an int, the size of its features; got {feature_dim!r}")
        self.encoder = encoder
        self.head = ProjectionHead(feature_dim, projection_dim, layers=layers)

    def forward(
        self, *images: Tensor, chunk_size: int | None = None, batch_norm: BatchNorm = "refuse"
    ) -> tuple[Tensor, ...]:
        together = torch.cat(images)
        if chunk_size is None:
            features = self.encoder(together)
        else:
            features = encode_in_chunks(self.encoder, together, chunk_size=chunk_size, batch_norm=batch_norm)
        return torch.split(self.head(features), [len(batch) for batch in images])


class MomentumMemory:
    """A moving average of a SimCLR network and a bank of its projections.

    In every step, after the loss and the optimiser's step, theta_m <- decay theta_m + (1 - decay) theta, and the
    projections g_m(f_m(view)) of the batch are added to the bank. Pass `negatives` to ``nt_xent`` as `bank`:

        memory = MomentumMemory(network, size=65536)
        loss = nt_xent(z_a, z_b, memory.negatives, temperature=0.1)
        ...
        optimizer.step()
        memory.update(network, view_b)

    This is our reading of SimCLRv2, section 2, whose released code has no memory. The moving average normalises with
    the statistics of its own batch, as the key network of MoCo does; over several processes with those of all of them,
    if the network was converted to synchronised batch norm before. It starts with the weights after the first step.

    Args:
        network: Network to train, which is copied.
        size: Number of projections to store.
        decay: Decay of the moving average.

    Reference: Chen et al. 2020, "Big Self-Supervised Models are Strong Semi-Supervised Learners", section 2; He et al.
    2020, "Momentum Contrast for Unsupervised Visual Representation Learning".
    """

    def __init__(self, network: SimCLR, *, size: int, decay: float = 0.999) -> None:
        self._average = MovingAverage(network, decay, use_buffers=False).train()
        weight = next(network.head.parameters())
        self._bank = MemoryBank(size, network.head.out_features, device=weight.device, dtype=weight.dtype)

    @property
    def negatives(self) -> Tensor:
        """Stored projections ``[M, projection_dim]``, none before the first step."""
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
        """Update the moving average with the network, and store its projections of these images.

        Args:
            network: Network after the optimiser's step.
            images: Images, ``[N, 3, H, W]``.
            gather: Whether to store the projections of all processes.
            chunk_size: Number of images that the encoder processes at a time, as in `SimCLR`; None: all.
            batch_norm: Batch norm of such chunks, as in `SimCLR`.
        """
        self._average.update_parameters(network)
        (keys,) = self._average(images, chunk_size=chunk_size, batch_norm=batch_norm)
        self._bank.add(keys, gather=gather)

    def state_dict(self) -> dict[str, Any]:
        """Return moving average and bank."""
        return {"average": self._average.state_dict(), "bank": self._bank.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load a state.

        Raises:
            RuntimeError, ValueError: The state belongs to another network or size.
        """
        self._average.load_state_dict(state["average"])
        self._bank.load_state_dict(state["bank"])
