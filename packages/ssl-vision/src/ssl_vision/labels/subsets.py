"""Subsets of a set of images: labelled training images and validation images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from contrastive_core.errors import UserError
from contrastive_core.text import some_of
from contrastive_core.training.split_names import canonical_split
from ssl_vision.data import ImageSet, Subset, open_images
from ssl_vision.data.dataset import map_images
from ssl_vision.data.open import warn_once
from ssl_vision.labels.files import read_labelled

_FINGERPRINTS = 1000
_MOSTLY = 0.5  # share of validation images from which a test is refused


def training_set(images: ImageSet, labels: Path | None, *, held_out: Tensor | None = None) -> ImageSet:
    """Return the labelled images of a set: those of a label file, or all except the held-out ones.

    Raises:
        UserError: Images have no labels, the label file does not fit, or it lists held-out images.
    """
    images.labels()
    if labels is None:
        return without(images, held_out)
    indices = read_labelled(labels, images)
    shared = indices[:0] if held_out is None else indices[torch.isin(indices, held_out)]
    if len(shared):
        raise UserError(
            f"{labels}: lists {len(shared)} of the images held out for validation ({images.key(int(shared[0]))}); "
            "the two must not overlap. `ssl-vision make-splits --validation-fraction` writes files that do not"
        )
    return Subset(images, indices.tolist())


def validation_set(
    validation: str | None, data: str, images: ImageSet
) -> tuple[ImageSet, Tensor | None] | tuple[None, None]:
    """Return the validation images, and their indices among the training images if they are part of them.

    Args:
        validation: Label file that lists images of the training split, or name of another split; None for no
            validation.
        data: Data set.
        images: Training split.

    Raises:
        UserError: It is the test split, which only `evaluate` uses; a split with other classes; or a file that does not
            fit.
    """
    if validation is None:
        return None, None
    file = Path(validation)
    if file.suffix or file.is_file():
        held_out = read_labelled(file, images)
        return Subset(images, held_out.tolist()), held_out
    if canonical_split(validation) == "test":
        raise UserError(
            f"validation is {validation!r}, but the test split cannot be used for validation: it would bias the test "
            "score; use `ssl-vision evaluate` afterwards, and for validation another split or a label file"
        )
    validation_images = open_images(data, split=validation, channels=images.channels, read=images.options)
    validation_images.labels()
    check_classes(validation_images, images.classes, of="trained on")
    shared = {images.path(i) for i in range(len(images))}.intersection(
        validation_images.path(i) for i in range(len(validation_images))
    )
    if shared:
        raise UserError(
            f"{data}: {len(shared)} images of split {validation!r} are also training images ({min(shared)}); the two "
            "must not overlap. Name another split, or hold images out with "
            "`ssl-vision make-splits --validation-fraction`"
        )
    return validation_images, None


def sample_fingerprints(images: ImageSet) -> list[str]:
    """Return the smallest fingerprints of a set, up to a thousand, which identify it, or much of it, among others.

    Because fingerprints are spread evenly, those below the largest one kept are a random sample of the images.
    """
    fingerprints = sorted(set(map_images(images.fingerprint, len(images))))
    return fingerprints[:_FINGERPRINTS]


def merge_fingerprints(*samples: Sequence[str]) -> list[str]:
    """Return the fingerprints that identify the union of several sets, see `sample_fingerprints`."""
    return sorted(set().union(*samples))[:_FINGERPRINTS]


def validation_share(images: ImageSet, validated_on: Sequence[str], *, part: str) -> float:
    """Return the share of the images to test on that were used for validation while the model was trained.

    Args:
        images: Images to test on.
        validated_on: Fingerprints of the validation images that the model records.
        part: Requested part of the data.

    Raises:
        UserError: The test part was requested, and at least half of its images were used for validation.
    """
    share = known_share(images, validated_on)
    if share >= _MOSTLY and canonical_split(part) == "test":
        stands_in = images.split != "test"
        problem = f"{images.name}: found images that training was validated on ({100 * share:.0f} %)"
        fallback = f"; the data have no test split, and {images.split} is used in its place" if stands_in else ""
        remedy = f", or name the part {images.split!r} to score it as the validation part" if stands_in else ""
        raise UserError(f"{problem}{fallback}. Expected images not seen in training: give other data{remedy}")
    return share


def known_share(images: ImageSet, fingerprints: Sequence[str]) -> float:
    """Return the share of the images of a set that are among those whose fingerprints were sampled.

    It is exact for up to a thousand of the latter, otherwise estimated; 0 without fingerprints.
    """
    if not fingerprints:
        return 0.0
    own = list(map_images(images.fingerprint, len(images)))
    if len(fingerprints) == _FINGERPRINTS:
        own = [value for value in own if value <= fingerprints[-1]]
    return len([value for value in own if value in set(fingerprints)]) / len(own) if own else 0.0


def without(images: ImageSet, held_out: Tensor | None) -> ImageSet:
    """Return the images that are not held out."""
    if held_out is None:
        return images
    indices = torch.arange(len(images))
    return Subset(images, indices[~torch.isin(indices, held_out)].tolist())


def check_classes(images: ImageSet, expected: list[str], *, of: str) -> None:
    """Check that the labels of two sets, or of a set and a model, have the same meaning.

    Raises:
        UserError: The class names or their order differ.
    """
    if images.classes != expected:
        here, there = (sorted(set(a) - set(b)) for a, b in ((images.classes, expected), (expected, images.classes)))
        differences = [f"{some_of(here)} only here"] if here else []
        differences += [f"{some_of(there)} only there"] if there else []
        spellings = {_comparison_key(name): name for name in expected}
        pairs = [(name, spellings[_comparison_key(name)]) for name in here if _comparison_key(name) in spellings]
        hint = f" ({pairs[0][0]!r} is {pairs[0][1]!r} in another spelling)" if pairs else ""
        raise UserError(
            f"{images.name}: its classes differ from those {of}"
            + (f": {'; '.join(differences)}{hint}" if differences else " in their order")
            + "; both need the same class names"
        )


def _comparison_key(name: str) -> str:
    return "".join(character for character in name.casefold() if character.isalnum())


def require_two_classes(images: ImageSet, *, labels: Path | None = None) -> None:
    """Refuse to learn classes from images of a single class.

    Args:
        images: Labelled images.
        labels: Label file that lists them, for the message.

    Raises:
        UserError: All images are of one class.
    """
    class_numbers = torch.unique(images.labels()).tolist()
    if len(class_numbers) < 2:
        name = images.classes[class_numbers[0]] if class_numbers else "none"
        raise UserError(
            f"{labels or images.name}: found labelled images of one class only ({name}), expected at least two "
            "classes. Look at the folders with `ssl-vision check`, or give labelled images of the other classes too"
        )


def note_unseen_classes(images: ImageSet, labels: Path | None) -> None:
    """Print a warning if classes have no labelled image, because scores count images of these classes as errors."""
    if missing := unseen_classes(images):
        warn_once(
            f"{labels or images.name}: no labelled image belongs to {len(missing)} of the {len(images.classes)} "
            f"classes ({some_of(missing)}), which cannot be predicted"
        )


def unseen_classes(images: ImageSet) -> list[str]:
    """Return the classes without any image, which cannot be learned from the set."""
    seen = set(images.labels().tolist())
    return [name for label, name in enumerate(images.classes) if label not in seen]
