"""What a frozen network makes of images: features of an encoder, logits of a classifier."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from contrastive_core.errors import UserError
from contrastive_core.training.model_file import module_hash
from contrastive_core.training.progress import track
from ssl_vision.augment import EvalTransform
from ssl_vision.data import ImageSet, Subset, open_images
from ssl_vision.data.image_set import ArrayImages
from ssl_vision.data.parallel import map_images
from ssl_vision.label_files import read_labelled
from ssl_vision.labelled import check_classes, require_two_classes
from ssl_vision.model_folder import LoadedModel, load_encoder

_AT_ONCE = 4  # whole images that a thread holds


@dataclass(frozen=True)
class LabelledFeatures:
    """Features ``[N, D]`` of a labelled split, with the hash of the encoder that made them."""

    features: Tensor
    labels: Tensor
    classes: list[str]
    encoder_hash: str
    split: str = ""


def evaluation_batches(images: ImageSet, *, size: int, batch_size: int) -> Iterator[Tensor]:
    """Batches ``[n, 3, size, size]`` in [0, 1], in the order of the set: central crop, or the whole of small images.

    Raises:
        UserError: batches of no images, or an image that cannot be read.
    """
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}; expected at least 1")
    transform = EvalTransform(size)
    starts = range(0, len(images), batch_size)
    for start in track(starts, total=len(starts), what=f"{images.name}, batches"):
        yield decode(images, range(start, min(start + batch_size, len(images))), transform)


def decode(
    images: ImageSet, indices: range, transform: EvalTransform, *, problems: dict[int, str] | None = None
) -> Tensor:
    """Read and transform images ``[n, 3, size, size]`` by several threads, which hold a few whole images at a time.

    Args:
        images: to read from.
        indices: of the images.
        transform: what makes them one size.
        problems: takes index and reason of an image that cannot be read, which is left out; None lets it be an error.
    """

    def part(number: int) -> Tensor:
        found = []
        for index in indices[number * _AT_ONCE : (number + 1) * _AT_ONCE]:
            try:
                found.append(images.read(index))
            except UserError as error:
                if problems is None:
                    raise
                problems[index] = str(error)
        return transform(found) if found else torch.empty(0, 3, transform.size, transform.size)

    if isinstance(images, ArrayImages):
        pictures: Tensor = transform(images.images[indices.start : indices.stop])
        return pictures
    return torch.cat(list(map_images(part, math.ceil(len(indices) / _AT_ONCE), chunk=1)))


@torch.no_grad()
def outputs(network: nn.Module, batches: Iterator[Tensor], *, device: torch.device) -> Iterator[Tensor]:
    """What the network makes of each batch, float32, with its batch norm in inference mode."""
    network.eval()
    for batch in batches:
        yield network(batch.to(device, memory_format=torch.channels_last)).float()


def extract(model: LoadedModel, images: ImageSet, *, batch_size: int = 512) -> Tensor:
    """Features ``[N, D]`` of all images, float32, batch norm in inference mode.

    Raises:
        UserError: no images, or an image that cannot be read.
    """
    if len(images) == 0:
        raise UserError("there are no images to compute features of")
    batches = evaluation_batches(images, size=model.image_size, batch_size=batch_size)
    return torch.cat(list(outputs(model.encoder, batches, device=model.device)))


def labelled_images(data: str, *, split: str, classes: list[str] | None = None, labels: Path | None = None) -> ImageSet:
    """Open a split whose images all have labels, of the classes given.

    Args:
        data: an image folder, CSV manifest or named data set.
        split: which part of it.
        classes: the names expected, in their order.
        labels: a label file: only the images in it are taken.

    Raises:
        UserError: images without labels, no images, or other classes than expected.
    """
    images = open_images(data, split=split)
    if labels is not None:
        images = Subset(images, read_labelled(Path(labels), images).tolist())
    images.labels()
    if classes is not None:
        check_classes(images, classes, of="trained on")
    return images


def labelled_features(
    model: str,
    data: str,
    *,
    split: str,
    batch_size: int,
    device: str,
    classes: list[str] | None = None,
    labels: Path | None = None,
    loaded: LoadedModel | None = None,
) -> LabelledFeatures:
    """Features of a labelled split under the frozen model, batch norm in inference mode; see `labelled_images`."""
    images = labelled_images(data, split=split, classes=classes, labels=labels)
    if classes is None:
        require_two_classes(images)
    loaded = loaded or load_encoder(model, device=device)
    features = extract(loaded, images, batch_size=batch_size)
    labels_there = images.labels().to(features.device)
    return LabelledFeatures(features, labels_there, images.classes, module_hash(loaded.encoder), images.split)
