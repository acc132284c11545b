"""`ssl-vision predict`: classify unlabelled images and write a table."""

from __future__ import annotations

import contextlib
import csv
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from contrastive_core.errors import UserError
from contrastive_core.text import several
from contrastive_core.training.ahead import compute_ahead
from contrastive_core.training.config import InferenceOptions
from contrastive_core.training.files import check_space
from contrastive_core.training.outputs import Outputs, run_files
from contrastive_core.training.progress import track
from contrastive_core.training.tables import safe_cell
from ssl_vision.augment import EvalTransform
from ssl_vision.data import ImageSet, input_files, open_images
from ssl_vision.data.dataset import ReadOptions
from ssl_vision.data.decode import FileImages
from ssl_vision.data.listing import list_folder
from ssl_vision.evaluation.features import (
    NOT_FINITE,
    batch_ranges,
    decode,
    import_pyarrow,
    outputs,
    replace_file,
)
from ssl_vision.models.model_folder import LoadedClassifier, load_classifier

_ROW, _CELL = 100, 12  # bytes of a path, and of a class or probability
_ENDINGS = (".csv", ".tsv", ".jsonl", ".parquet")


@dataclass(frozen=True)
class PredictResult:
    """Path of the table, number of images in it, and number of unreadable ones."""

    out: Path
    images: int
    unreadable: int

    def __str__(self) -> str:
        text = f"{self.out}: {self.images:,} images"
        if self.unreadable:
            text += f", of which {self.unreadable:,} could not be read (see the column error)"
        return text


def predict(
    model: str,
    data: str,
    out: Path,
    *,
    part: str = "all",
    top: int = 1,
    probabilities: bool = False,
    inference: InferenceOptions = InferenceOptions(),  # noqa: B008 - frozen
    read: ReadOptions = ReadOptions(),  # noqa: B008
    overwrite: bool = False,
) -> PredictResult:
    r"""Classify images and write a table with one row per image: path, class, probability, error.

    A folder gives all images in it and its subfolders, sorted by path; paths in the table are relative to it. An image
    that is unreadable or of an unsupported kind (HEIC, camera raw) has a row with an empty class and the reason under
    ``error``. A CSV file is UTF-8 with all text in quotes, so that a CSV reader restores any file name (bytes that are
    not UTF-8 are written as escapes such as ``\udcff``). The table is written completely or not at all: rows go to a
    temporary file, which is renamed at the end. Memory grows with the number of images only by their paths. Text that a
    spreadsheet would interpret as a formula is preceded by ``./`` (paths) or an apostrophe. Classes that are WordNet
    identifiers (``n01440764``) get a column ``name`` after the class, if the model has their names.

    Args:
        model: Run folder of ``ssl-vision finetune`` or ``distill``, or its model folder.
        data: Folder of images, CSV manifest, or named data set; labels are ignored.
        out: Table to write: ``.csv``, ``.tsv``, ``.jsonl`` or ``.parquet``, by its suffix.
        part: Part of a manifest or a named data set.
        top: Number of most probable classes to list: with 3, columns class, probability, class_2, probability_2,
            class_3, probability_3.
        probabilities: Whether to write the probability of every class, in columns ``p(CLASS)``.
        inference: Batch size and device.
        read: Options for reading image files.
        overwrite: Whether to replace files that this command did not write.

    Returns:
        Path of the file and numbers of images.
    """
    out = Path(out)
    ending = out.suffix.lower()
    if ending not in _ENDINGS:
        raise UserError(f"{out}: found the suffix {ending!r}, expected one of {', '.join(_ENDINGS)}")
    if ending == ".parquet":
        import_pyarrow()
    output_files = Outputs(
        [out], command="ssl-vision predict", inputs=input_files(data, *run_files(model)), overwrite=overwrite
    )
    classifier = load_classifier(model, device=inference.device)
    images = _open(data, part, channels=classifier.channels, read=read.for_model(classifier.bits))
    if not 1 <= top <= len(classifier.classes):
        raise UserError(f"predict can list 1 to {len(classifier.classes)} classes of this model, got top={top}")
    unreadable = 0

    names = classifier.class_names
    head = _head(classifier.classes, top=top, probabilities=probabilities, has_names=bool(names))

    num_bytes = len(images) * (_ROW + _CELL * len(head))
    check_space(out.parent, num_bytes, what=f"the rows of {len(images):,} images", files=1)

    parts = batch_ranges(len(images), inference.batch_size)
    transform = EvalTransform(classifier.image_size)

    def read_part(indices: range) -> tuple[range, Tensor, dict[int, str]]:
        problems: dict[int, str] = {}
        return indices, decode(images, indices, transform, problems=problems), problems

    def write(path: Path) -> None:
        nonlocal unreadable
        with _open_table(path, ending, head) as write_rows:
            batches = compute_ahead(read_part, parts)
            for indices, pictures, problems in track(batches, total=len(parts), what=f"{images.name}, batches"):
                readable = iter(_probabilities(classifier, pictures).tolist())
                rows: list[list[str | float]] = []
                for index in indices:
                    scores = None if index in problems else next(readable)
                    if scores is not None and not all(map(math.isfinite, scores)):
                        scores, problems[index] = None, NOT_FINITE
                    cells = _cells(scores, classifier.classes, names, top=top, probabilities=probabilities)
                    rows.append([images.key(index), *cells, problems.get(index, "")])
                write_rows(rows)
                unreadable += len(problems)

    with output_files:
        replace_file(out, write)
    return PredictResult(out, len(images), unreadable)


@contextlib.contextmanager
def _open_table(path: Path, ending: str, head: Sequence[str]) -> Iterator[Callable[[list[list[str | float]]], None]]:
    """Open a table, in the format of the suffix, to which rows are written as they come."""
    if ending == ".parquet":
        pyarrow, parquet = import_pyarrow()
        kinds = [
            pyarrow.float64() if "probability" in name or name.startswith("p(") else pyarrow.string() for name in head
        ]
        schema = pyarrow.schema(list(zip(head, kinds, strict=True)))
        with parquet.ParquetWriter(path, schema) as writer:

            def write_batch(rows: list[list[str | float]]) -> None:
                columns = zip(head, kinds, zip(*rows, strict=True), strict=True)
                arrays = [
                    pyarrow.array([None if kind == pyarrow.float64() and v == "" else v for v in values], kind)
                    for _, kind, values in columns
                ]
                writer.write_table(pyarrow.Table.from_arrays(arrays, schema=schema))

            yield write_batch
        return
    with path.open("w", encoding="utf-8", newline="") as file:
        if ending == ".jsonl":

            def write_lines(rows: list[list[str | float]]) -> None:
                for row in rows:
                    record = {name: None if value == "" else value for name, value in zip(head, row, strict=True)}
                    file.write(json.dumps(record, ensure_ascii=False) + "\n")

            yield write_lines
            return
        # All text in quotes: plain quoting misses some of the rarer characters in file names.
        delimiter = "\t" if ending == ".tsv" else ","
        table = csv.writer(file, delimiter=delimiter, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
        table.writerow(head)
        yield lambda rows: table.writerows(
            [safe_cell(str(path), path=True), *(safe_cell(cell) if isinstance(cell, str) else cell for cell in cells)]
            for path, *cells in rows
        )


def _open(data: str, part: str, *, channels: int = 3, read: ReadOptions = ReadOptions()) -> ImageSet:  # noqa: B008
    folder = Path(data).expanduser()
    if not folder.is_dir():
        return open_images(data, split=part, channels=channels, read=read)
    listing = list_folder(folder)
    paths = sorted(listing.images + listing.unread)  # unsupported kinds get a row with the reason
    if not paths:
        raise UserError(
            f"{folder}: found no images among {several(len(listing.others), 'file')}; expected some to classify"
        )
    return FileImages(str(folder), folder, paths, channels=channels, options=read)


@torch.no_grad()
def _probabilities(classifier: LoadedClassifier, pictures: Tensor) -> Tensor:
    """Return probabilities, float64 ``[n, C]``."""
    if not len(pictures):
        return torch.empty(0, len(classifier.classes))
    (logits,) = outputs(classifier.model, iter([pictures]), device=classifier.device)
    return logits.cpu().double().softmax(dim=1)


def _head(classes: Sequence[str], *, top: int, probabilities: bool, has_names: bool) -> list[str]:
    ranks = ["", *(f"_{rank}" for rank in range(2, top + 1))]
    columns = ("class", "name", "probability") if has_names else ("class", "probability")
    ranked = [f"{name}{rank}" for rank in ranks for name in columns]
    return ["path", *ranked, *(f"p({name})" for name in classes if probabilities), "error"]


def _cells(
    scores: list[float] | None, classes: Sequence[str], names: Mapping[str, str], *, top: int, probabilities: bool
) -> Iterator[str | float]:
    """Yield the cells between path and error, which are empty for an unreadable image."""
    if scores is None:
        yield from [""] * ((3 if names else 2) * top + len(classes) * probabilities)
        return
    ranked = sorted(range(len(classes)), key=lambda c: -scores[c])
    for c in ranked[:top]:
        yield classes[c]
        if names:
            yield names.get(classes[c], "")
        yield _number(scores[c])
    if probabilities:
        yield from map(_number, scores)


def _number(probability: float) -> float:
    return float(f"{probability:.6g}")
