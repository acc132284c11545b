"""SimCLR: an encoder and a projection head, trained so that two views of an image agree."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from contrastive_core.heads import ProjectionHead


class SimCLR(nn.Module):
    """Encoder ``f`` and projection head ``g`` of SimCLR (section 2.1), and of SuNCEt, which needs no other network.

    ``forward(view_a, view_b)`` gives the projections ``z_a, z_b = g(f(view_a)), g(f(view_b))`` of shape
    ``[N, projection_dim]``. All that is given goes through the network as one batch, in that order, so that batch norm
    sees it together as in the official codes: both views of SimCLR, and with ``forward(view_a, view_b, labelled)`` the
    labelled images of SuNCEt. Train with ``contrastive_core.nt_xent(z_a, z_b)`` and ``contrastive_core.suncet(z, y)``;
    use ``model.encoder`` afterwards, its features are better than the head's (section 4.2).

    Args:
        encoder: maps ``[N, 3, H, W]`` to ``[N, encoder.feature_dim]``.
        projection_dim: size of z; 128 in the paper.
        layers: linear layers of the head; 2 in SimCLR, 3 in SimCLRv2.
    """

    def __init__(self, encoder: nn.Module, *, projection_dim: int = 128, layers: int = 2) -> None:
        super().__init__()
        feature_dim = encoder.feature_dim
        if not isinstance(feature_dim, int):
            raise TypeError(f"encoder.feature_dim must be an int, the size of its features; got {feature_dim!r}")
        self.encoder = encoder
        self.head = ProjectionHead(feature_dim, projection_dim, layers=layers)

    def forward(self, *images: Tensor) -> tuple[Tensor, ...]:
        z: Tensor = self.head(self.encoder(torch.cat(images)))
        return torch.split(z, [len(batch) for batch in images])
