"""`ssl-vision predict`: classify unlabelled images into a table."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from contrastive_core.errors import UserError
from contrastive_core.training.outputs import Outputs
from contrastive_core.training.progress import track
from ssl_vision.augment import EvalTransform
from ssl_vision.data import ImageSet, open_images
from ssl_vision.data.dataset import FileImages
from ssl_vision.data.decode import ReadOptions
from ssl_vision.data.listing import list_folder
from ssl_vision.evaluation.features import decode, outputs, replace_file
from ssl_vision.models.checkpoint import LoadedClassifier, load_classifier


@dataclass(frozen=True)
class PredictResult:
    """The table, how many images are in it, and how many of these could not be read."""

    out: Path
    images: int
    unreadable: int

    def __str__(self) -> str:
        text = f"{self.out}: {self.images:,} images"
        if self.unreadable:
            text += f", of which {self.unreadable:,} could not be read (column error says why)"
        return text


def predict(
    model: str,
    data: str,
    out: Path,
    *,
    part: str = "all",
    top: int = 1,
    probabilities: bool = False,
    batch_size: int = 256,
    device: str = "auto",
    read: ReadOptions = ReadOptions(),  # noqa: B008 - frozen
    overwrite: bool = False,
) -> PredictResult:
    r"""Classify images and write a CSV file with a row for each: path, class, probability, error.

    Of a folder all images are taken, however deep they lie, in the order of their sorted paths; paths in the table are
    relative to it. An image that cannot be read, or is of a kind that is not read (HEIC, camera raw), has its row, with
    an empty class and the reason under ``error``. The file is UTF-8 with all text in quotes, so that any file name
    comes back whole from a CSV reader (bytes that are no UTF-8 are written as escapes such as ``\udcff``). It is
    complete or not there: rows are written beside it as they are computed, and renamed at the end. Memory does not grow
    with the number of images beyond their paths.

    Args:
        model: Run folder of ``ssl-vision finetune`` or ``distill``, or its model folder.
        data: Folder of images, CSV manifest, or named data set; labels are ignored.
        out: CSV file to write.
        part: Part of a manifest or a named data set.
        top: Number of most probable classes to list: with 3, columns class, probability, class_2, probability_2,
            class_3, probability_3.
        probabilities: Whether to write the probability of every class, in columns ``p(CLASS)``.
        batch_size: Images per forward pass.
        device: Device to run on: auto, cpu, cuda or mps.
        read: How image files are read.
        overwrite: Whether to replace files that this command did not write.

    Returns:
        The file and what is in it.
    """
    if batch_size < 1:
        raise UserError(f"predict needs batch_size >= 1, got {batch_size}")
    out = Path(out)
    planned = Outputs([out], command="ssl-vision predict", inputs=[data], overwrite=overwrite)
    loaded = load_classifier(model, device=device)
    images = _open(data, part, channels=loaded.channels, read=read)
    if not 1 <= top <= len(loaded.classes):
        raise UserError(f"predict can list 1 to {len(loaded.classes)} classes of this model, got top={top}")
    unreadable = 0

    def write(path: Path) -> None:
        nonlocal unreadable
        with path.open("w", encoding="utf-8", newline="") as file:
            # All text in quotes: of the rarer characters of file names, plain quoting forgets some.
            writer = csv.writer(file, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
            writer.writerow(_head(loaded.classes, top=top, probabilities=probabilities))
            starts = range(0, len(images), batch_size)
            for start in track(starts, total=len(starts), what=f"{images.name}, batches"):
                indices = range(start, min(start + batch_size, len(images)))
                problems: dict[int, str] = {}
                found = _probabilities(loaded, images, indices, problems)
                readable = iter(found.tolist())
                for index in indices:
                    given = None if index in problems else next(readable)
                    cells = _cells(given, loaded.classes, top=top, probabilities=probabilities)
                    writer.writerow([images.key(index), *cells, problems.get(index, "")])
                unreadable += len(problems)

    with planned:
        replace_file(out, write)
    return PredictResult(out, len(images), unreadable)


def _open(data: str, part: str, *, channels: int = 3, read: ReadOptions = ReadOptions()) -> ImageSet:  # noqa: B008
    folder = Path(data).expanduser()
    if not folder.is_dir():
        return open_images(data, split=part, channels=channels, read=read)
    listing = list_folder(folder)
    paths = sorted(listing.images + listing.unread)  # the latter get a row that says why they have no class
    if not paths:
        raise UserError(f"{folder}: found no images among {len(listing.others)} files; expected some to classify")
    return FileImages(str(folder), folder, paths, channels=channels, options=read)


@torch.no_grad()
def _probabilities(loaded: LoadedClassifier, images: ImageSet, indices: range, problems: dict[int, str]) -> Tensor:
    """Float64 ``[n, C]`` of the images that can be read; the others are put among the problems."""
    pictures = decode(images, indices, EvalTransform(loaded.image_size), problems=problems)
    if not len(pictures):
        return torch.empty(0, len(loaded.classes))
    (logits,) = outputs(loaded.model, iter([pictures]), device=loaded.device)
    return logits.cpu().double().softmax(dim=1)


def _head(classes: Sequence[str], *, top: int, probabilities: bool) -> list[str]:
    ranks = ["", *(f"_{rank}" for rank in range(2, top + 1))]
    ranked = [f"{name}{rank}" for rank in ranks for name in ("class", "probability")]
    return ["path", *ranked, *(f"p({name})" for name in classes if probabilities), "error"]


def _cells(
    given: list[float] | None, classes: Sequence[str], *, top: int, probabilities: bool
) -> Iterator[str | float]:
    """What stands between path and error: nothing, of an image that could not be read."""
    if given is None:
        yield from [""] * (2 * top + len(classes) * probabilities)
        return
    ranked = sorted(range(len(classes)), key=lambda c: -given[c])
    for c in ranked[:top]:
        yield from (classes[c], _number(given[c]))
    if probabilities:
        yield from map(_number, given)


def _number(probability: float) -> float:
    return float(f"{probability:.6g}")
