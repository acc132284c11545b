"""Local contrastive loss between pixels and the class prototypes of a pair of images, for segmentation."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from contrastive_core.losses._inputs import (
    check_floating,
    check_ignore_index,
    check_temperature,
    result_dtype,
    tensors_first,
    unit_rows,
)
from contrastive_core.similarity.autograd import differentiable_once
from contrastive_core.similarity.precision import exact_dtype
from contrastive_core.synchronization import free_to_read

_NAME = "local_contrastive"
_VOID = 255  # marks unlabelled pixels in PASCAL VOC, Cityscapes, ADE20K and most others

Variant = Literal["inter", "intra"]
Reduction = Literal["pair_mean", "official"]

# Not -inf: a row in which every class is absent then has zero gradient rather than NaN.
_ABSENT = -1e30


@tensors_first
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
    ignore_index: int | None = None,
    reduction: Reduction = "pair_mean",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Compute the local contrastive loss, which pulls pixels towards the mean embeddings of their class in two images.

    For an anchor pixel z of class k in image 1 of a pair (1, 2), with m_c^i the mean embedding of class c in image i
    and s = cos / temperature:

        intra:  -log( exp s(z, m_k^1) / sum_c exp s(z, m_c^1) )
        inter:  -log( exp s(z, m_k^1) / D ) - log( exp s(z, m_k^2) / D ),
                D = sum_c exp s(z, m_c^1) + sum_c exp s(z, m_c^2)

    and the same with the images swapped. Sums run over the foreground classes; the background has neither anchors nor
    prototypes. Gradients flow through anchors and prototypes. In the `inter` variant each of the two positives is a
    negative for the other, so that the loss is at least 2 log 2.

    The sum S over the anchors, classes and images of a pair is divided by N = P F (intra) or 2 P F (inter), for P
    anchors in each of F classes; the result is twice the mean term. Memory is proportional to the size of the
    embedding. Similarities are computed in float64.

    Args:
        embedding: Pixel embeddings [B, E, H, W], not normalised.
        label: True labels or pseudo-labels, integers [B, H, W], 0 for the background.
        pairs: Indices into the batch, integers [Q, 2]; an image may be in several pairs or be paired with itself.
        variant: "inter" (the paper's default) or "intra".
        temperature: Positive number; 0.1 in the paper.
        anchors_per_class: Number P of randomly drawn anchors per image and class.
        anchors: Anchors as (row, col), integers [B, num_classes - 1, P, 2]; those of absent classes are ignored. If
            None, anchors are drawn uniformly with replacement for each image and class.
        num_classes: Number of classes C, including the background. If None, it is taken from `anchors`, or else is the
            largest label + 1.
        ignore_index: Label of unlabelled pixels, usually 255. Like background pixels, they are not anchors and do not
            contribute to a mean embedding. Because only means are candidates, they are not candidates either. NaN in
            these pixels has no effect, and their gradient is 0.
        reduction: "pair_mean" is the mean over pairs of S / N, where N is half the number of existing terms. "official"
            is the formula of the released code, where N counts all classes and each pair is divided by N once more for
            every pair that follows, so that the last pair counts most: (1 / Q) sum_b S_b N^-(Q - b + 1), b = 1 .. Q.
        generator: Generator for drawn anchors.

    Returns:
        Scalar; float64 if the embedding is float64, else float32. NaN embeddings give NaN, unless their label is
        ignore_index.

    Raises:
        ValueError: Shapes do not match, labels are outside 0 .. C-1, pairs are outside the batch, anchors are outside
            the image, variant or reduction is unknown, or the temperature is not positive and finite.
        TypeError: The embedding is not floating point, or labels, pairs or anchors are not integers.

    Note:
        A term exists if the anchor's class is present both in its own image and in that of the prototype. Absent
        classes are not candidates. A pair without any term is excluded from "pair_mean" and adds 0 to "official".
        Without any term the loss is exactly 0, with zero gradient.

    Reference: Chaitanya et al. 2023, "Local contrastive loss with pseudo-label based self-training for semi-supervised
    medical image segmentation", with the terms of the released code.

    >>> import torch
    >>> from contrastive_core import local_contrastive
    >>> embedding = torch.eye(2)[torch.tensor([[[0, 1], [0, 1]]])].permute(0, 3, 1, 2)
    >>> label = torch.tensor([[[1, 2], [1, 2]]])
    >>> local_contrastive(embedding, label, pairs=torch.tensor([[0, 0]]), variant="intra", temperature=1.0)
    tensor(0.6265)
    """
    temperature = check_temperature("local_contrastive", temperature)
    check_choices(variant, reduction, anchors_per_class)
    check_ignore_index("local_contrastive", ignore_index)
    label, ignore_mask = _without_ignored(label, ignore_index)
    classes = check_maps(embedding, label, anchors, num_classes)
    first, second = check_pairs(pairs, len(label)).to(label.device, non_blocking=True).unbind(1)

    dtype = result_dtype(embedding)
    # Convert once for anchors and prototypes, so that the sum of their gradients is rounded only once.
    embedding = embedding.to(dtype)
    if ignore_mask is not None:
        embedding = embedding.masked_fill(ignore_mask[:, None], 0.0)  # 0 * NaN would be NaN in the means
    prototypes, present = class_means(embedding, label, classes)
    if anchors is None:
        anchors = draw_anchors(label, num_classes=classes, anchors_per_class=anchors_per_class, generator=generator)
    else:
        anchors = check_anchors(anchors.to(label.device), present, label, ignore_mask)
    terms = _Terms(_pixels(embedding, anchors), prototypes, present, temperature, variant)
    sums, counts = (a + b for a, b in zip(terms.of(first, second), terms.of(second, first), strict=True))

    if reduction == "official":
        full = anchors.shape[1] * anchors.shape[2] * (2 if variant == "inter" else 1)
        later = torch.arange(len(sums), 0, -1, device=sums.device, dtype=sums.dtype)
        loss = (sums * full**-later).mean()
    else:
        loss = (2 * sums / counts.clamp(min=1)).sum() / (counts > 0).sum().clamp(min=1)
    return differentiable_once(_nan_if_wrong(loss.to(dtype), label, classes), embedding)


class LocalContrastiveLoss(nn.Module):
    """:func:`local_contrastive` as a module: ``LocalContrastiveLoss()(embedding, label, pairs=pairs)``."""

    @tensors_first
    def __init__(
        self,
        *,
        variant: Variant = "inter",
        temperature: float = 0.1,
        anchors_per_class: int = 3,
        num_classes: int | None = None,
        ignore_index: int | None = None,
        reduction: Reduction = "pair_mean",
    ) -> None:
        super().__init__()
        check_temperature("LocalContrastiveLoss", temperature)
        check_choices(variant, reduction, anchors_per_class)
        self.variant, self.temperature, self.reduction = variant, temperature, reduction
        check_ignore_index("LocalContrastiveLoss", ignore_index)
        self.anchors_per_class, self.num_classes = anchors_per_class, num_classes
        self.ignore_index = ignore_index

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
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            generator=generator,
        )

    def extra_repr(self) -> str:
        return (
            f"variant={self.variant!r}, temperature={self.temperature}, reduction={self.reduction!r}, "
            f"ignore_index={self.ignore_index}"
        )


class _Terms:
    """Terms of the loss between the anchors of images and the prototypes of these and of partner images."""

    def __init__(
        self, anchors: Tensor, prototypes: Tensor, present: Tensor, temperature: float, variant: Variant
    ) -> None:
        exact = exact_dtype(anchors)
        self.anchors, self.prototypes = unit_rows(anchors, exact), unit_rows(prototypes, exact)
        self.present, self.temperature, self.inter = present, temperature, variant == "inter"

    def of(self, image: Tensor, partner: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sum [Q] and the number [Q] of the terms of each image's anchors, given the image's partner [Q]."""
        targets = [image, partner] if self.inter else [image]
        logits = [self._logits(image, target) for target in targets]
        normaliser = torch.cat(logits, -1).logsumexp(-1)
        total, count = normaliser.new_zeros(len(image)), torch.zeros_like(image)
        for target, logit in zip(targets, logits, strict=True):
            # The logit of the anchor's own class: [Q, F, P, F] -> [Q, P, F].
            term = normaliser.mT - logit.diagonal(dim1=1, dim2=3)
            live = (self.present[image] & self.present[target])[:, None].expand_as(term)
            total = total + torch.where(live, term, 0.0).sum((1, 2))
            count = count + live.sum((1, 2))
        return total, count

    def _logits(self, image: Tensor, target: Tensor) -> Tensor:
        """Return the similarities [Q, F, P, F] of the anchors of each class to the prototypes of the target image."""
        logits = torch.einsum("qfpe,qce->qfpc", self.anchors[image], self.prototypes[target]) / self.temperature
        return logits.masked_fill(~self.present[target][:, None, None], _ABSENT)


def _pixels(embedding: Tensor, anchors: Tensor) -> Tensor:
    """Return the embeddings at (row, col): [B, E, H, W] at [B, F, P, 2] -> [B, F, P, E]."""
    index = (anchors[..., 0] * embedding.shape[3] + anchors[..., 1]).flatten(1)
    pixels = embedding.flatten(2).gather(2, index[:, None].expand(-1, embedding.shape[1], -1))
    return pixels.mT.reshape(*anchors.shape[:3], -1)


def class_means(embedding: Tensor, label: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Compute the mean embedding of each foreground class in each image, not normalised.

    Args:
        embedding: Pixel embeddings [B, E, H, W].
        label: Integers [B, H, W], 0 for the background.
        num_classes: Number of classes C, including the background.

    Returns:
        Means [B, C-1, E] in float64 (float32 on MPS) with gradient, 0 for an absent class, and a mask bool [B, C-1] of
        the classes that are present.
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
    """Draw pixels of each foreground class in each image, uniformly with replacement.

    Args:
        label: Integers [B, H, W], 0 for the background.
        num_classes: Number of classes C, including the background.
        anchors_per_class: Number of draws P per image and class.
        generator: Random generator; the global one if None. A generator on the CPU gives the same pixels for labels on
            any device.

    Returns:
        (row, col) as int64 [B, C-1, P, 2]; (0, 0) for an absent class.

    >>> draw_anchors(torch.tensor([[[0, 1], [0, 0]]]), num_classes=3, anchors_per_class=2).tolist()
    [[[[0, 1], [0, 1]], [[0, 0], [0, 0]]]]
    """
    sorted_labels, pixel = label.flatten(1).to(torch.int64).sort(dim=1, stable=True)
    edges = torch.arange(1, num_classes + 1, device=label.device).expand(len(label), -1).contiguous()
    start = torch.searchsorted(sorted_labels, edges)[:, :, None]
    first, count = start[:, :-1], start.diff(dim=1)
    device = label.device if generator is None else generator.device
    share = torch.rand(len(label), num_classes - 1, anchors_per_class, generator=generator, device=device)
    # In float64, so that a fraction just below 1 times a large count does not round up to the count.
    offset = (share.to(label.device, non_blocking=True).to(exact_dtype(label)) * count).to(torch.int64)
    position = first + torch.minimum(offset, (count - 1).clamp(min=0))
    indices = pixel.gather(1, position.flatten(1).clamp(max=sorted_labels.shape[1] - 1)).view_as(position)
    indices = indices.masked_fill(count == 0, 0)
    width = label.shape[2]
    return torch.stack([indices // width, indices % width], -1)


def check_choices(variant: str, reduction: str, anchors_per_class: int) -> None:
    """Raise ValueError for an unknown variant or reduction, or for fewer than one anchor per class."""
    for name, value, choices in (
        ("variant", variant, ("inter", "intra")),
        ("reduction", reduction, ("pair_mean", "official")),
    ):
        if value not in choices:
            raise ValueError(f"{_NAME}: {name} is {value!r}, expected {choices[0]!r} or {choices[1]!r}")
    if anchors_per_class < 1:
        raise ValueError(f"{_NAME}: anchors_per_class is {anchors_per_class}, expected at least 1")


def check_maps(embedding: Tensor, label: Tensor, anchors: Tensor | None, num_classes: int | None) -> int:
    """Check that the embedding is [B, E, H, W] and labels are integers [B, H, W] in 0 .. C-1, and return C."""
    check_floating(_NAME, embedding=embedding)
    _check_integers("label", label)
    if embedding.ndim != 4 or label.shape != embedding.shape[:1] + embedding.shape[2:] or label.numel() == 0:
        raise ValueError(
            f"{_NAME}: embedding is {list(embedding.shape)} and label is {list(label.shape)}, expected [B, E, H, W] "
            "and [B, H, W] of the same size, not empty"
        )
    if embedding.device != label.device:
        raise ValueError(
            f"{_NAME}: embedding is on {embedding.device} and label on {label.device}, expected the same device"
        )
    classes = num_classes
    if anchors is not None:
        _check_integers("anchors", anchors)
        if anchors.ndim != 4 or anchors.shape[0] != len(label) or anchors.shape[3] != 2 or anchors.shape[2] == 0:
            raise ValueError(
                f"{_NAME}: anchors have shape {list(anchors.shape)}, expected [B, num_classes - 1, anchors per class, "
                f"2] for the {len(label)} images of the batch"
            )
        classes = anchors.shape[1] + 1
        if num_classes not in (None, classes):
            raise ValueError(
                f"{_NAME}: num_classes is {num_classes}, but anchors are for {classes} classes (background included); "
                "omit num_classes or pass anchors [B, num_classes - 1, anchors per class, 2]"
            )
    if classes is not None and classes < 2:
        raise ValueError(f"{_NAME}: num_classes is {classes}, expected at least 2: the background and one class")
    if classes is not None and not free_to_read(label):
        return classes
    lowest, highest = torch.stack(label.aminmax()).tolist()
    if classes is None:
        # Without foreground there is no term; an empty class keeps the shapes valid.
        classes = max(highest + 1, 2)
    if num_classes is None and anchors is None and highest == _VOID:
        raise ValueError(
            f"{_NAME}: labels go up to {_VOID}, the usual value for unlabelled pixels; pass "
            f"ignore_index={_VOID}, or num_classes={_VOID + 1} if it is a class"
        )
    if lowest < 0 or highest >= classes:
        raise ValueError(
            f"{_NAME}: labels range from {lowest} to {highest}, expected 0 (background) to {classes - 1}; "
            "pass ignore_index=... if one of them marks unlabelled pixels"
        )
    return classes


def _nan_if_wrong(loss: Tensor, label: Tensor, classes: int) -> Tensor:
    """Return the loss, or NaN if a label is not a class; for labels on the CPU, `check_maps` has raised an error."""
    if free_to_read(label):
        return loss
    lowest, highest = label.aminmax()
    return loss * torch.where((lowest >= 0) & (highest < classes), 1.0, torch.nan)


def check_pairs(pairs: Tensor, images: int) -> Tensor:
    """Check that pairs are indices into the batch, and return them as int64 [Q, 2]."""
    _check_integers("pairs", pairs)
    if pairs.ndim != 2 or pairs.shape[1] != 2 or len(pairs) == 0:
        raise ValueError(f"{_NAME}: pairs have shape {list(pairs.shape)}, expected [Q, 2] with at least one pair")
    lowest, highest = (int(value) for value in pairs.aminmax())
    if lowest < 0 or highest >= images:
        raise ValueError(
            f"{_NAME}: pairs range from {lowest} to {highest}, expected indices 0 to {images - 1} into the batch"
        )
    return pairs.to(torch.int64)


def check_anchors(anchors: Tensor, present: Tensor, label: Tensor, ignore_mask: Tensor | None = None) -> Tensor:
    """Return anchors as int64, with (0, 0) for absent classes.

    Raises:
        ValueError: An anchor of a present class is outside the image, or its pixel is ignored.
    """
    anchors = torch.where(present[:, :, None, None], anchors.to(torch.int64), 0)
    size = torch.tensor(label.shape[1:], device=anchors.device)
    outside = ((anchors < 0) | (anchors >= size)).any(-1)
    if bool(outside.any()):
        image, number, anchor = (int(i) for i in outside.nonzero()[0])
        raise ValueError(
            f"{_NAME}: an anchor of class {number + 1} in image {image} is {anchors[image, number, anchor].tolist()}, "
            f"expected (row, col) inside {label.shape[1]} x {label.shape[2]} pixels"
        )
    if ignore_mask is not None:
        images = torch.arange(len(anchors), device=anchors.device)[:, None, None]
        hit = ignore_mask[images, anchors[..., 0], anchors[..., 1]] & present[:, :, None]
        if bool(hit.any()):
            image, number, anchor = (int(i) for i in hit.nonzero()[0])
            raise ValueError(
                f"{_NAME}: the anchor {anchors[image, number, anchor].tolist()} of class {number + 1} in image {image} "
                "is a pixel labelled ignore_index, expected a pixel of the class"
            )
    return anchors


def _without_ignored(label: Tensor, ignore_index: int | None) -> tuple[Tensor, Tensor | None]:
    """Replace ignore_index by the background, 0; return the labels and the mask of replaced pixels (None: no mask)."""
    if ignore_index is None:
        return label, None
    _check_integers("label", label)
    check_ignore_index(_NAME, ignore_index, label)
    ignore_mask = label == ignore_index
    return label.masked_fill(ignore_mask, 0), ignore_mask


def _check_integers(argument: str, x: Tensor) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{_NAME}: {argument} is {type(x).__name__}, expected an integer tensor")
    if x.is_floating_point() or x.is_complex() or x.dtype == torch.bool:
        raise TypeError(f"{_NAME}: {argument} is {x.dtype}, expected an integer tensor")
