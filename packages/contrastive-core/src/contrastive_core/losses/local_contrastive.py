"""The local contrastive loss: pixels of a class lie near the class's mean embedding in two images."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from contrastive_core.losses._common import check_temperature, normalise

Variant = Literal["intra", "inter"]
Reduction = Literal["pair_mean", "official"]


def local_contrastive(
    embedding: Tensor,
    label: Tensor,
    *,
    pairs: Tensor,
    variant: Variant = "inter",
    temperature: float = 0.1,
    anchors_per_class: int = 3,
    anchors: Tensor | None = None,
    num_classes: int | None = None,
    reduction: Reduction = "pair_mean",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Contrast anchor pixels with the class prototypes of a pair of images.

    The prototype ``m_k`` of class k in an image is the mean of the embeddings of all its pixels labelled k; background (0)
    has neither anchors nor prototypes. For an anchor z of class k in one image of a pair, ``s(a, b) = cos(a, b) /
    temperature``, own prototypes m and those of the other image m':

    - intra: ``-log exp s(z, m_k) / sum over c of exp s(z, m_c)``
    - inter: ``-log exp s(z, m_k) / D - log exp s(z, m'_k) / D``, ``D = sum over c of exp s(z, m_c) + exp s(z, m'_c)``.
      As each positive is a negative of the other, the terms do not go below about log 2.

    Both images of a pair give anchors. A class that an image lacks has no prototype there, and no anchors; terms that would
    need one are left out. If nothing is left the loss is exactly 0 with a zero gradient.

    Args:
        embedding: ``[B, E, H, W]``, of any length per pixel; computed in float32 (float64 for float64).
        label: ``[B, H, W]`` whole numbers, ground truth or pseudo-labels, 0 the background.
        pairs: ``[P, 2]`` indices into the batch.
        variant: ``inter`` also pulls towards the other image's prototype.
        temperature: of the similarities.
        anchors_per_class: anchors drawn per image and class, uniformly with replacement; ignored with `anchors`.
        anchors: recorded (row, column) ``[B, num_classes - 1, anchors_per_class, 2]`` instead of drawn ones.
        num_classes: with the background; None: from anchors, else the largest label + 1.
        reduction: ``pair_mean``: mean over pairs of S / n with S the sum of a pair's terms and n half their number.
            ``official``: the released code's, which divides the running sum inside its loop over pairs, so that pair b of B
            weighs ``n^-(B - b + 1) / B`` and nearly only the last pair counts; its n does not shrink with absent classes.
        generator: of the drawn anchors, on the labels' device.

    Raises:
        TypeError: labels or pairs are not whole numbers.
        ValueError: shapes do not belong together, indices or labels out of range, temperature not positive.

    Reference: Chaitanya et al. 2021, "Local contrastive loss with pseudo-label based self-training for semi-supervised
    medical image segmentation".
    """
    check_temperature(temperature)
    foreground = _check(embedding, label, pairs, anchors, num_classes) - 1
    if variant not in ("intra", "inter"):
        raise ValueError(f"variant must be 'intra' or 'inter', got {variant!r}")
    if reduction not in ("pair_mean", "official"):
        raise ValueError(f"reduction must be 'pair_mean' or 'official', got {reduction!r}")
    embedding = embedding if embedding.dtype == torch.float64 else embedding.float()
    if foreground < 1 or len(pairs) == 0:
        return embedding.sum() * 0
    with torch.autocast(embedding.device.type, enabled=False):
        prototypes, present = _prototypes(embedding, label, foreground)
        if anchors is None:
            if anchors_per_class < 1:
                raise ValueError(f"anchors_per_class must be at least 1, got {anchors_per_class}")
            anchors = _draw(label, foreground, anchors_per_class, generator)
        pixels = _pick(embedding, anchors.to(embedding.device))
        term_sum, terms = _pair_terms(pixels, prototypes, present, pairs.to(embedding.device), variant, 1 / temperature)
    if reduction == "pair_mean":
        return (2 * term_sum / terms.clamp_min(1)).mean()
    n = pixels.shape[2] * foreground * (2 if variant == "inter" else 1)
    exponents = torch.arange(len(pairs), 0, -1, dtype=term_sum.dtype, device=term_sum.device)
    return (term_sum * float(n) ** -exponents).mean()


def _check(
    embedding: Tensor, label: Tensor, pairs: Tensor, anchors: Tensor | None, num_classes: int | None
) -> int:
    """Shapes and ranges; returns the number of classes with the background."""
    if embedding.ndim != 4 or not embedding.is_floating_point():
        raise ValueError(f"embedding must be floating-point [B, E, H, W], got {embedding.dtype} {tuple(embedding.shape)}")
    for name, whole in (("label", label), ("pairs", pairs)):
        if whole.is_floating_point() or whole.dtype == torch.bool:
            raise TypeError(f"{name} must hold whole numbers, got {whole.dtype}")
    batch, _, height, width = embedding.shape
    if label.shape != (batch, height, width):
        raise ValueError(f"label must be {(batch, height, width)} to fit the embedding, got {tuple(label.shape)}")
    if pairs.ndim != 2 or pairs.shape[1] != 2:
        raise ValueError(f"pairs must be [P, 2] indices into the batch, got {tuple(pairs.shape)}")
    if pairs.numel() and not 0 <= int(pairs.min()) <= int(pairs.max()) < batch:
        raise ValueError(f"pairs must lie in 0 .. {batch - 1}, got {int(pairs.min())} .. {int(pairs.max())}")
    smallest, largest = (int(label.min()), int(label.max())) if label.numel() else (0, 0)
    if num_classes is None:
        num_classes = anchors.shape[1] + 1 if anchors is not None and anchors.ndim == 4 else largest + 1
    if smallest < 0 or largest >= num_classes:
        raise ValueError(f"label must lie in 0 .. {num_classes - 1}, got {smallest} .. {largest}")
    if anchors is not None:
        if anchors.ndim != 4 or anchors.shape[:2] != (batch, num_classes - 1) or anchors.shape[3] != 2:
            raise ValueError(
                f"anchors must be [{batch}, {num_classes - 1}, anchors_per_class, 2], got {tuple(anchors.shape)}"
            )
        limit = torch.tensor([height, width], device=anchors.device)
        if bool((anchors < 0).any()) or bool((anchors >= limit).any()):
            raise ValueError(f"anchors must be (row, column) inside {height} x {width} pixels")
    return num_classes


def _prototypes(embedding: Tensor, label: Tensor, foreground: int) -> tuple[Tensor, Tensor]:
    """Mean embeddings ``[B, F, E]``, 0 where a class is absent, and presence ``[B, F]``."""
    mask = (label[:, None] == torch.arange(1, foreground + 1, device=label.device)[:, None, None]).to(embedding)
    counts = mask.sum(dim=(2, 3))
    sums = torch.einsum("bfhw,behw->bfe", mask, embedding)
    return sums / counts.clamp_min(1)[..., None], counts > 0


def _draw(label: Tensor, foreground: int, number: int, generator: torch.Generator | None) -> Tensor:
    """(row, column) ``[B, F, number, 2]``, uniform over a class's pixels; of all pixels where the class is absent."""
    classes = torch.arange(1, foreground + 1, device=label.device)
    mask = (label.flatten(1)[:, None] == classes[:, None]).float()
    mask = torch.where(mask.any(dim=2, keepdim=True), mask, 1.0)
    place = torch.multinomial(mask.flatten(0, 1), number, replacement=True, generator=generator)
    width = label.shape[2]
    return torch.stack([place // width, place % width], dim=-1).view(len(label), foreground, number, 2)


def _pick(embedding: Tensor, anchors: Tensor) -> Tensor:
    """Embeddings of the anchor pixels: ``[B, F, A, E]``."""
    batch = torch.arange(len(embedding), device=embedding.device)[:, None, None]
    return embedding.permute(0, 2, 3, 1)[batch, anchors[..., 0], anchors[..., 1]]


def _pair_terms(
    pixels: Tensor, prototypes: Tensor, present: Tensor, pairs: Tensor, variant: Variant, scale: float
) -> tuple[Tensor, Tensor]:
    """Sum of the terms and their number, per pair: ``[P]``, ``[P]``."""
    shape = pixels.shape
    pixels = normalise(pixels.flatten(0, 2)).view(shape)
    prototypes = normalise(prototypes.flatten(0, 1)).view(prototypes.shape)
    # Both images of a pair give anchors: [2P] images and their partners.
    image, partner = torch.cat([pairs, pairs.flip(1)]).unbind(1)
    z = pixels[image]
    similarity = [scale * torch.einsum("pfae,pce->pfac", z, prototypes[image])]
    there = [present[image]]
    if variant == "inter":
        similarity.append(scale * torch.einsum("pfae,pce->pfac", z, prototypes[partner]))
        there.append(present[partner])
    candidates = torch.cat(similarity, dim=3)
    absent = ~torch.cat(there, dim=1)[:, None, None]
    # An image with no class at all has no term; 0 instead of -inf keeps its gradient finite.
    hopeless = absent.all(dim=3, keepdim=True)
    log_d = candidates.masked_fill(absent & ~hopeless, float("-inf")).logsumexp(dim=3)
    total, number = z.new_zeros(len(image)), z.new_zeros(len(image))
    for values, exists in zip(similarity, there, strict=True):
        live = (present[image] & exists)[..., None]
        positive = values.diagonal(dim1=1, dim2=3).transpose(1, 2)
        total = total + torch.where(live, log_d - positive, 0.0).sum(dim=(1, 2))
        number = number + live.sum(dim=(1, 2)) * shape[2]
    return total.view(2, -1).sum(dim=0), number.view(2, -1).sum(dim=0)


class LocalContrastiveLoss(nn.Module):
    """:func:`local_contrastive` with its keywords held."""

    def __init__(
        self,
        *,
        variant: Variant = "inter",
        temperature: float = 0.1,
        anchors_per_class: int = 3,
        num_classes: int | None = None,
        reduction: Reduction = "pair_mean",
    ) -> None:
        super().__init__()
        check_temperature(temperature)
        self.variant, self.temperature, self.anchors_per_class = variant, temperature, anchors_per_class
        self.num_classes, self.reduction = num_classes, reduction

    def forward(
        self,
        embedding: Tensor,
        label: Tensor,
        *,
        pairs: Tensor,
        anchors: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        return local_contrastive(
            embedding,
            label,
            pairs=pairs,
            variant=self.variant,
            temperature=self.temperature,
            anchors_per_class=self.anchors_per_class,
            anchors=anchors,
            num_classes=self.num_classes,
            reduction=self.reduction,
            generator=generator,
        )

    def extra_repr(self) -> str:
        return f"variant={self.variant!r}, temperature={self.temperature}, reduction={self.reduction!r}"
