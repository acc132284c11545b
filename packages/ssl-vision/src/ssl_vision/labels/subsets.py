"""Subsets of a set of images: those to learn from with their labels, and those to validate on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from contrastive_core.errors import UserError
from ssl_vision.data import ImageSet, Subset, open_images
from ssl_vision.data.dataset import map_images
from ssl_vision.labels.files import read_labelled

_FINGERPRINTS = 1000


def training_set(images: ImageSet, labels: Path | None, *, held_out: Tensor | None = None) -> ImageSet:
    """The labelled images of a set: those of a label file, or all but the ones held out.

    Raises:
        UserError: images without labels, a label file that does not fit, or one that lists images held out.
    """
    images.labels()
    if labels is None:
        return without(images, held_out)
    chosen = read_labelled(labels, images)
    shared = chosen[:0] if held_out is None else chosen[torch.isin(chosen, held_out)]
    if len(shared):
        raise UserError(
            f"{labels}: lists {len(shared)} of the images held out for validation ({images.key(int(shared[0]))}); "
            "the two must not overlap. `ssl-vision make-splits --validation-fraction` writes files that do not"
        )
    return Subset(images, chosen.tolist())


def validation_set(validation: str, data: str, images: ImageSet) -> tuple[ImageSet, Tensor | None]:
    """The images to score on, and their indices among the images of training, if they are some of those.

    Args:
        validation: a label file that names images of the training split, or the name of another split.
        data: where the images are.
        images: the training split.

    Raises:
        UserError: the test split, which is for `evaluate` alone; a split of other classes; a file that does not fit.
    """
    file = Path(validation)
    if file.suffix or file.is_file():
        held_out = read_labelled(file, images)
        return Subset(images, held_out.tolist()), held_out
    if validation == "test":
        raise UserError(
            "validation is 'test', but training never opens test images, or their scores would say too much; use "
            "`ssl-vision evaluate` afterwards, and for validation another split or a label file"
        )
    found = open_images(data, split=validation, channels=images.channels, read=images.options)
    found.labels()
    check_classes(found, images.classes, of="trained on")
    shared = {images.path(i) for i in range(len(images))}.intersection(found.path(i) for i in range(len(found)))
    if shared:
        raise UserError(
            f"{data}: {len(shared)} images of split {validation!r} are trained on as well ({min(shared)}); the two "
            "must not overlap. Name another split, or hold images out with "
            "`ssl-vision make-splits --validation-fraction`"
        )
    return found, None


def sample_fingerprints(images: ImageSet) -> list[str]:
    """The smallest fingerprints of a set, up to a thousand: enough to recognise it, or much of it, among others.

    As fingerprints are spread evenly, those below the largest one kept are a random sample of the images.
    """
    found = sorted(set(map_images(images.fingerprint, len(images))))
    return found[:_FINGERPRINTS]


def known_share(images: ImageSet, known: Sequence[str]) -> float:
    """Share of the images of a set that are among those that fingerprints were sampled from.

    Exact for up to a thousand of the latter, else estimated; 0 without fingerprints.
    """
    if not known:
        return 0.0
    own = list(map_images(images.fingerprint, len(images)))
    if len(known) == _FINGERPRINTS:
        own = [value for value in own if value <= known[-1]]
    return len([value for value in own if value in set(known)]) / len(own) if own else 0.0


def without(images: ImageSet, held_out: Tensor | None) -> ImageSet:
    """The images but for those held out."""
    if held_out is None:
        return images
    everything = torch.arange(len(images))
    return Subset(images, everything[~torch.isin(everything, held_out)].tolist())


def check_classes(images: ImageSet, expected: list[str], *, of: str) -> None:
    """See that the labels of two sets, or of a set and a model, mean the same.

    Raises:
        UserError: other class names, or another order.
    """
    if images.classes != expected:
        only = sorted(set(images.classes) ^ set(expected))
        raise UserError(
            f"{images.name}: its classes differ from those {of}"
            + (f" ({', '.join(only[:5])} on one side only)" if only else " in their order")
            + "; both need the same class names"
        )


def require_two_classes(images: ImageSet) -> None:
    """Refuse to learn a classifier from images that are all of one class.

    Raises:
        UserError: They are.
    """
    present = torch.unique(images.labels()).tolist()
    if len(present) < 2:
        name = images.classes[present[0]] if present else "none"
        raise UserError(
            f"{images.name}: found labelled images of one class only ({name}), expected at least two classes. See how "
            "the folders lie with `ssl-vision check`, or give labelled images of the other classes too"
        )


def unseen_classes(images: ImageSet) -> list[str]:
    """The classes that none of the images is of, and that nothing can be learned about from them."""
    seen = set(images.labels().tolist())
    return [name for label, name in enumerate(images.classes) if label not in seen]
