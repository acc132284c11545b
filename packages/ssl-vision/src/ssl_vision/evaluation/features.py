"""Compute features of encoders and logits of classifiers, and write files of features."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from contrastive_core.errors import UserError
from contrastive_core.training.ahead import compute_ahead
from contrastive_core.training.files import atomic_path
from contrastive_core.training.model_file import module_hash
from contrastive_core.training.progress import track
from ssl_vision.augment import EvalTransform
from ssl_vision.data import ImageSet, Subset, open_images
from ssl_vision.data.dataset import ArrayImages, ReadOptions, map_images
from ssl_vision.labels.files import read_labelled
from ssl_vision.labels.subsets import check_classes, note_unseen_classes, require_two_classes, validation_share
from ssl_vision.models.model_folder import LoadedClassifier, LoadedModel

NOT_FINITE = "the model returns values that are not finite"
_AT_ONCE = 4  # full-size images held by a thread


@dataclass(frozen=True)
class LabelledFeatures:
    """Features ``[N, D]`` of a labelled split, with the hash of the encoder that made them.

    `validation_share` is the share of the images that were used for validation while the encoder was trained.
    """

    features: Tensor
    labels: Tensor
    classes: list[str]
    encoder_hash: str
    split: str = ""
    validation_share: float = 0.0


def evaluation_batches(images: ImageSet, *, size: int, batch_size: int) -> Iterator[Tensor]:
    """Yield batches ``[n, 3, size, size]`` in [0, 1] in order: the central crop, or all of a small image.

    The next batch is read meanwhile.

    Raises:
        UserError: The batch size is below 1, or an image cannot be read.
    """
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}; expected at least 1")
    transform = EvalTransform(size)
    parts = batch_ranges(len(images), batch_size)
    batches = compute_ahead(lambda part: decode(images, part, transform), parts)
    yield from track(batches, total=len(parts), what=f"{images.name}, batches")


def batch_ranges(count: int, size: int) -> list[range]:
    """Divide the numbers below `count` into batches; the last one may be smaller."""
    numbers = range(count)
    return [numbers[start : start + size] for start in numbers[::size]]


def decode(
    images: ImageSet, indices: range, transform: EvalTransform, *, problems: dict[int, str] | None = None
) -> Tensor:
    """Read and transform images ``[n, 3, size, size]`` with several threads, which hold a few full-size images each.

    Args:
        images: Images.
        indices: Indices of the images to read.
        transform: Transform that gives all images one size.
        problems: Receives index and reason for unreadable images, which are left out; None: raise the error.
    """

    def part(number: int) -> Tensor:
        batch = []
        for index in indices[number * _AT_ONCE : (number + 1) * _AT_ONCE]:
            try:
                batch.append(images.read(index))
            except UserError as error:
                if problems is None:
                    raise
                problems[index] = str(error)
        return transform(batch) if batch else torch.empty(0, images.channels, transform.size, transform.size)

    if isinstance(images, ArrayImages):
        pictures: Tensor = transform(images.images[indices.start : indices.stop])
        return pictures
    return torch.cat(list(map_images(part, math.ceil(len(indices) / _AT_ONCE), chunk=1)))


@torch.no_grad()
def outputs(network: nn.Module, batches: Iterator[Tensor], *, device: torch.device) -> Iterator[Tensor]:
    """Yield the float32 output of the network for each batch, with batch norm in inference mode."""
    network.eval()
    for batch in batches:
        yield network(batch.to(device, memory_format=torch.channels_last)).float()


def extract(model: LoadedModel | LoadedClassifier, images: ImageSet, *, batch_size: int = 512) -> Tensor:
    """Compute features ``[N, D]`` of all images with an encoder, or logits ``[N, C]`` with a classifier, float32.

    Batch norm is in inference mode.

    Raises:
        UserError: There are no images, an image cannot be read, or values are not finite.
    """
    if len(images) == 0:
        raise UserError("there are no images to compute features of")
    network = model.model if isinstance(model, LoadedClassifier) else model.encoder
    batches = evaluation_batches(images, size=model.image_size, batch_size=batch_size)
    features = torch.cat(list(outputs(network, batches, device=model.device)))
    bad = (~features.isfinite().all(dim=1)).nonzero().flatten()
    if len(bad):  # neighbours and largest values of NaN are arbitrary, and their accuracy would look like one
        raise UserError(
            f"{images.path(int(bad[0]))}: {NOT_FINITE}, for {len(bad):,} of {len(images):,} images; "
            "expected finite ones, as of a model whose training did not diverge"
        )
    return features


def labelled_images(
    data: str,
    *,
    split: str,
    classes: list[str] | None = None,
    labels: Path | None = None,
    channels: int = 3,
    read: ReadOptions = ReadOptions(),  # noqa: B008 - frozen
) -> ImageSet:
    """Open a split whose images are all labelled, with the given classes.

    Args:
        data: Image folder, CSV manifest or named data set.
        split: Part of the data.
        classes: Expected class names, in order.
        labels: Label file; only the images in it are used.
        channels: Number of channels of the images.
        read: Options for reading image files.

    Raises:
        UserError: Images have no labels, there are no images, or the classes differ.
    """
    images = open_images(data, split=split, channels=channels, read=read)
    if labels is not None:
        images = Subset(images, read_labelled(Path(labels), images).tolist())
        note_unseen_classes(images, labels)
    images.labels()
    if classes is not None:
        check_classes(images, classes, of="trained on")
    return images


def labelled_features(
    model: LoadedModel,
    data: str,
    *,
    split: str,
    batch_size: int,
    classes: list[str] | None = None,
    labels: Path | None = None,
    read: ReadOptions = ReadOptions(),  # noqa: B008 - frozen
) -> LabelledFeatures:
    """Compute the features of a labelled split with the frozen model, see `labelled_images`.

    Raises:
        UserError: See `labelled_images`; without `classes`, also if all images are of a single class.
    """
    images = labelled_images(
        data, split=split, classes=classes, labels=labels, channels=model.channels, read=read.for_model(model.bits)
    )
    if classes is None:
        require_two_classes(images, labels=labels)
    features = extract(model, images, batch_size=batch_size)
    return LabelledFeatures(
        features, images.labels().to(features.device), images.classes, module_hash(model.encoder), images.split
    )


def evaluation_features(
    model: LoadedModel,
    data: str,
    *,
    part: str,
    batch_size: int,
    classes: list[str],
    read: ReadOptions = ReadOptions(),  # noqa: B008 - frozen
) -> LabelledFeatures:
    """Compute the features of the images to test on, with the share of them that the model was validated on.

    Raises:
        UserError: See `labelled_images` and `validation_share`.
    """
    images = labelled_images(
        data, split=part, classes=classes, channels=model.channels, read=read.for_model(model.bits)
    )
    share = validation_share(images, model.validated_on, part=part)
    features = extract(model, images, batch_size=batch_size)
    labels = images.labels().to(features.device)
    return LabelledFeatures(features, labels, images.classes, module_hash(model.encoder), images.split, share)


def write_npz(file: Path, features: Tensor, images: ImageSet) -> None:
    """Write arrays that `numpy.load` reads without pickle.

    ``features`` float32 ``[N, D]``, ``ids`` int64 ``[N]``, ``paths`` text ``[N]``, ``labels`` int64 ``[N]`` (-1 without
    labels) and ``classes`` text ``[C]``, the names that labels index. Equal features give equal bytes.
    """
    labels = images.labels().numpy() if images.is_labelled else np.full(len(images), -1, dtype=np.int64)

    def write(path: Path) -> None:
        with path.open("wb") as stream:
            np.savez(
                stream,
                features=features.cpu().numpy(),
                ids=images.ids.numpy(),
                paths=np.array([images.path(i) for i in range(len(images))], dtype=np.str_),
                labels=labels,
                classes=np.array(images.classes, dtype=np.str_),
            )

    replace_file(file, write)


def write_parquet(file: Path, features: Tensor, images: ImageSet) -> None:
    """Write a table with a row per image: id, path, label and class (null without labels), features (list of float).

    Raises:
        UserError: pyarrow is not installed.
    """
    pyarrow, parquet = import_pyarrow()
    rows = features.cpu().numpy()
    labels = images.labels().tolist() if images.is_labelled else [None] * len(images)
    table = pyarrow.table(
        {
            "id": pyarrow.array(images.ids.numpy()),
            "path": pyarrow.array([images.path(i) for i in range(len(images))], pyarrow.string()),
            "label": pyarrow.array(labels, pyarrow.int64()),
            "class": pyarrow.array([None if n is None else images.classes[n] for n in labels], pyarrow.string()),
            "features": pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(rows.reshape(-1)), rows.shape[1]),
        }
    )
    replace_file(file, lambda path: parquet.write_table(table, path))


def import_pyarrow() -> tuple[Any, Any]:
    """Import pyarrow and its parquet module, or raise an error that tells how to install them."""
    try:
        import pyarrow  # noqa: PLC0415 - an extra
        import pyarrow.parquet  # noqa: PLC0415
    except ImportError as error:
        raise UserError(
            "a .parquet file needs pyarrow, which is not installed; pip install 'ssl-vision[parquet]', or write .npz"
        ) from error
    return pyarrow, pyarrow.parquet


def replace_file(file: Path, write: Callable[[Path], object]) -> None:
    """Write to a temporary file and rename it, so that an interruption leaves no partial file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(file) as new:
        write(new)
