"""Checks of what `local_contrastive` is given."""

from __future__ import annotations

import torch
from torch import Tensor

from contrastive_core.losses.rows import check_floating

_NAME = "local_contrastive"


def check_choices(variant: str, reduction: str, anchors_per_class: int) -> None:
    """Raises ValueError for a choice that does not exist."""
    for name, value, known in (
        ("variant", variant, ("inter", "intra")),
        ("reduction", reduction, ("pair_mean", "official")),
    ):
        if value not in known:
            raise ValueError(f"{_NAME}: {name} is {value!r}, expected {known[0]!r} or {known[1]!r}")
    if anchors_per_class < 1:
        raise ValueError(f"{_NAME}: anchors_per_class is {anchors_per_class}, expected at least 1")


def check_maps(embedding: Tensor, label: Tensor, anchors: Tensor | None, num_classes: int | None) -> int:
    """The number of classes C; raises unless embedding is [B, E, H, W] and label integers [B, H, W] in 0 .. C-1."""
    check_floating(_NAME, embedding=embedding)
    _check_integers("label", label)
    if embedding.ndim != 4 or label.shape != embedding.shape[:1] + embedding.shape[2:] or label.numel() == 0:
        raise ValueError(
            f"{_NAME}: embedding is {list(embedding.shape)} and label {list(label.shape)}, expected [B, E, H, W] and "
            "[B, H, W] of the same size, not empty"
        )
    if embedding.device != label.device:
        raise ValueError(f"{_NAME}: embedding is on {embedding.device}, label on {label.device}, expected one device")
    lowest, highest = (int(value) for value in label.aminmax())
    classes = num_classes
    if anchors is not None:
        _check_integers("anchors", anchors)
        if anchors.ndim != 4 or anchors.shape[0] != len(label) or anchors.shape[3] != 2 or anchors.shape[2] == 0:
            raise ValueError(
                f"{_NAME}: anchors are {list(anchors.shape)}, expected [B, num_classes - 1, anchors per class, 2] "
                f"for the {len(label)} images of the batch"
            )
        classes = anchors.shape[1] + 1
        if num_classes not in (None, classes):
            raise ValueError(f"{_NAME}: num_classes is {num_classes}, anchors are for {classes} (background included)")
    if classes is None:
        # Without foreground there is no term; one empty class keeps the shapes.
        classes = max(highest + 1, 2)
    if classes < 2:
        raise ValueError(f"{_NAME}: num_classes is {classes}, expected at least 2: the background and one class")
    if lowest < 0 or highest >= classes:
        raise ValueError(
            f"{_NAME}: labels range from {lowest} to {highest}, expected 0 (background) to {classes - 1}; map "
            "pixels that are to be ignored to 0"
        )
    return classes


def check_pairs(pairs: Tensor, images: int) -> Tensor:
    """Pairs as int64 [Q, 2]; raises unless they are indices into the batch."""
    _check_integers("pairs", pairs)
    if pairs.ndim != 2 or pairs.shape[1] != 2 or len(pairs) == 0:
        raise ValueError(f"{_NAME}: pairs have shape {list(pairs.shape)}, expected [Q, 2] with at least one pair")
    lowest, highest = (int(value) for value in pairs.aminmax())
    if lowest < 0 or highest >= images:
        raise ValueError(
            f"{_NAME}: pairs range from {lowest} to {highest}, expected indices 0 to {images - 1} into the batch"
        )
    return pairs.to(torch.int64)


def check_anchors(anchors: Tensor, present: Tensor, label: Tensor) -> Tensor:
    """Anchors as int64, those of absent classes at (0, 0); raises if another lies outside the image."""
    anchors = torch.where(present[:, :, None, None], anchors.to(torch.int64), 0)
    size = torch.tensor(label.shape[1:], device=anchors.device)
    outside = ((anchors < 0) | (anchors >= size)).any(-1)
    if bool(outside.any()):
        image, number, anchor = (int(i) for i in outside.nonzero()[0])
        raise ValueError(
            f"{_NAME}: an anchor of class {number + 1} in image {image} is {anchors[image, number, anchor].tolist()}, "
            f"expected (row, col) inside {label.shape[1]} x {label.shape[2]} pixels"
        )
    return anchors


def _check_integers(argument: str, x: Tensor) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{_NAME}: {argument} is {type(x).__name__}, expected an integer tensor")
    if x.is_floating_point() or x.is_complex() or x.dtype == torch.bool:
        raise TypeError(f"{_NAME}: {argument} is {x.dtype}, expected an integer tensor")
