"""SimCLR: an encoder and a projection head, trained so that two views of an image agree."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from contrastive_core.grad_cache import BatchNorm, encode_in_chunks
from contrastive_core.heads import ProjectionHead


class SimCLR(nn.Module):
    """Encoder ``f`` and projection head ``g`` of SimCLR (section 2.1), and of SuNCEt, which needs no other network.

    ``forward(view_a, view_b)`` gives the projections ``z_a, z_b = g(f(view_a)), g(f(view_b))`` of shape
    ``[N, projection_dim]``. All that is given goes through the network as one batch, in that order, so that batch norm
    sees it together as in the official codes: both views of SimCLR, and with ``forward(view_a, view_b, labelled)`` the
    labelled images of SuNCEt. Train with ``contrastive_core.nt_xent(z_a, z_b)`` and ``contrastive_core.suncet(z, y)``;
    use ``model.encoder`` afterwards, its features are better than the head's (section 4.2).

    With ``chunk_size`` the encoder sees that many images at a time, twice: the same gradient in the memory of a chunk
    (`contrastive_core.encode_in_chunks`, which says what becomes of batch norm). The head, which is small, still sees
    all of them, and its batch norm is that of the whole batch.

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

    def forward(
        self, *images: Tensor, chunk_size: int | None = None, batch_norm: BatchNorm = "refuse"
    ) -> tuple[Tensor, ...]:
        together = torch.cat(images)
        if chunk_size is None:
            features = self.encoder(together)
        else:
            features = encode_in_chunks(self.encoder, together, chunk_size=chunk_size, batch_norm=batch_norm)
        return torch.split(self.head(features), [len(batch) for batch in images])
