"""Pixels of a class: their mean embedding, and anchors drawn among them."""

from __future__ import annotations

import torch
from torch import Tensor

from contrastive_core.similarity.precision import exact_dtype


def class_means(embedding: Tensor, label: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Mean embedding of every foreground class of every image, not normalised.

    Args:
        embedding: [B, E, H, W].
        label: integers [B, H, W], 0 the background.
        num_classes: C, the background included.

    Returns:
        Means [B, C-1, E] in float64 (float32 on MPS), with gradient, 0 for a class that is absent; and whether the
        class is present, bool [B, C-1].
    """
    exact = exact_dtype(embedding)
    sums, counts = [], []
    # One class at a time: sums over many pixels at full precision, without a [B, C, H, W] mask or a copy in float64.
    for number in range(1, num_classes):
        mask = label == number
        sums.append((embedding * mask[:, None]).sum((2, 3), dtype=exact))
        counts.append(mask.sum((1, 2)))
    count = torch.stack(counts, 1)
    return torch.stack(sums, 1) / count.clamp(min=1)[..., None], count > 0


def draw_anchors(
    label: Tensor, *, num_classes: int, anchors_per_class: int, generator: torch.Generator | None = None
) -> Tensor:
    """Pixels of every foreground class of every image, drawn uniformly with replacement.

    Args:
        label: integers [B, H, W], 0 the background.
        num_classes: C, the background included.
        anchors_per_class: P.
        generator: of the draws; one on the CPU gives the same pixels for labels on any device. None: the global one.

    Returns:
        (row, col) as int64 [B, C-1, P, 2]; (0, 0) for a class that is absent.

    >>> draw_anchors(torch.tensor([[[0, 1], [0, 0]]]), num_classes=3, anchors_per_class=2).tolist()
    [[[[0, 1], [0, 1]], [[0, 0], [0, 0]]]]
    """
    ordered, pixel = label.flatten(1).to(torch.int64).sort(dim=1, stable=True)
    edges = torch.arange(1, num_classes + 1, device=label.device).expand(len(label), -1).contiguous()
    start = torch.searchsorted(ordered, edges)[:, :, None]
    first, count = start[:, :-1], start.diff(dim=1)
    device = label.device if generator is None else generator.device
    share = torch.rand(len(label), num_classes - 1, anchors_per_class, generator=generator, device=device)
    # In float64, so that a share just below 1 of many pixels does not round up to all of them.
    drawn = (share.to(label.device).to(exact_dtype(label)) * count).to(torch.int64)
    position = first + torch.minimum(drawn, (count - 1).clamp(min=0))
    chosen = pixel.gather(1, position.flatten(1).clamp(max=ordered.shape[1] - 1)).view_as(position)
    chosen = chosen.masked_fill(count == 0, 0)
    width = label.shape[2]
    return torch.stack([chosen // width, chosen % width], -1)
