"""`ssl-vision make-splits`: select the images whose labels may be used, and write label files."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from contrastive_core.errors import UserError
from contrastive_core.rng import derive
from contrastive_core.text import several, some_of
from contrastive_core.training.config import DrawOptions, equal_selections
from contrastive_core.training.outputs import write_once
from ssl_vision.data import ImageSet, input_files, open_images
from ssl_vision.data.dataset import map_images
from ssl_vision.data.open import locate
from ssl_vision.labels.choose import Balance, images_for, share_out, shuffled_by_class
from ssl_vision.labels.files import LabelFile
from ssl_vision.labels.subsets import require_two_classes

VALIDATION = "validation.json"
_SHOWN = 5


@dataclass(frozen=True)
class SplitsWritten:
    """Files written by `make-splits`; `str` gives the text that the command prints.

    Attributes:
        files: Content of each file, in the order of writing.
        unreadable: Reasons why images that were drawn first have been replaced by others.
    """

    files: dict[Path, LabelFile]
    unreadable: tuple[str, ...] = ()

    def __str__(self) -> str:
        width = max(len(str(file)) for file in self.files)
        lines = [f"{'file':{width}}  images  per class"]
        for file, content in self.files.items():
            counts = Counter(label for _, label in content.images).values()
            spread = f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
            lines.append(f"{file!s:{width}}  {len(content.images):6,}  {spread}")
        selections = {file.stem: content.images for file, content in self.files.items()}
        lines += [f"note: {note}" for note in equal_selections(selections)]
        if self.unreadable:
            lines.append(f"left out {several(len(self.unreadable), 'unreadable image')}:")
            lines += [f"  {reason}" for reason in self.unreadable[:_SHOWN]]
            more = len(self.unreadable) - _SHOWN
            lines += [f"  ... and {more:,} more; `ssl-vision check` lists all of them"] if more > 0 else []
        return "\n".join(lines)


@dataclass(frozen=True)
class LabelDrawOptions(DrawOptions):
    """Numbers of images to label and to hold out, and the draws of the labelled ones.

    Attributes:
        fractions: Fractions of the images to label, rounded down; every class has at least one image.
        validation_fraction: Fraction of the images to hold out for choosing settings, proportional by class, in
            validation.json; 0 for none. It is the same for all draws and shares no image with them; `fractions` then
            refer to the other images.
    """

    fractions: tuple[float, ...] = (0.01, 0.1)


def make_splits(
    data: str,
    out: Path,
    *,
    part: str = "train",
    draw: LabelDrawOptions = LabelDrawOptions(),
    balance: Balance = "equal",
    overwrite: bool = False,
) -> SplitsWritten:
    """Select the images whose labels may be used, and write label files that list them.

    A file ``10percent-draw0.json`` (or ``25-per-class-draw0.json``) lists images with their classes and a hash of the
    list. Within a draw, a smaller selection is part of a larger one; draws are independent. The selection is a function
    of the seed and the images alone. `finetune` and the other commands with few labels take such a file, or a text file
    with one file name per line, such as the official lists of ImageNet. An image without a readable header is
    replaced by the next one of its class.

    Args:
        data: Image folder, CSV manifest or named data set with labels.
        out: Folder for the files. Existing files must have the same content.
        part: Part of the data to select from.
        draw: Numbers of images to label and to hold out, draws, and seed.
        balance: Balance of the classes: ``equal`` for equal numbers, to within one, as in the papers; ``proportional``
            to the size of the classes.
        overwrite: Whether to replace files that this command did not write. Label files with other content are among
            them.

    Returns:
        Content of the files.

    Raises:
        UserError: All images are of one class, or a class has too few images.
    """
    seed = draw.seed
    images = open_images(data, split=part)
    require_two_classes(images)
    files = _Files(data, part, images, Path(out))
    groups = shuffled_by_class(images.labels(), images.classes, seed=derive(seed, "validation"))
    held_out: set[int] = set()
    if draw.validation_fraction:
        sizes = {name: len(members) for name, members in groups.items()}
        total = max(len(sizes), images_for(draw.validation_fraction, len(images)))
        counts = share_out(total, sizes, balance="proportional", at_least={}, seed=derive(seed, "validation"))
        held_out = files.add(VALIDATION, groups, counts, {"fraction": draw.validation_fraction, "seed": seed})
    for number in range(draw.draws):
        draw_seed = derive(seed, "draw", number)
        groups = shuffled_by_class(images.labels(), images.classes, seed=draw_seed)
        groups = {name: [i for i in members if i not in held_out] for name, members in groups.items()}
        sizes = {name: len(members) for name, members in groups.items()}
        counts = {}
        for fraction in sorted(draw.fractions):
            total = max(len(sizes), images_for(fraction, sum(sizes.values())))
            counts = share_out(total, sizes, balance=balance, at_least=counts, seed=draw_seed)
            settings: dict[str, object] = {"fraction": fraction, "balance": balance, "seed": seed, "draw": number}
            files.add(f"{100 * fraction:g}percent-draw{number}.json", groups, counts, settings)
        for count in sorted(draw.per_class):
            counts = dict.fromkeys(groups, count)
            files.add(
                f"{count}-per-class-draw{number}.json",
                groups,
                counts,
                {"per_class": count, "seed": seed, "draw": number},
            )
    label_files = files.contents
    contents = {file: content.to_bytes() for file, content in label_files.items()}
    write_once(contents, command="ssl-vision make-splits", inputs=input_files(data), overwrite=overwrite)
    return SplitsWritten(label_files, tuple(files.unreadable.values()))


class _Files:
    """Label files of one data set."""

    def __init__(self, data: str, split: str, images: ImageSet, out: Path) -> None:
        name, root = locate(data)
        # The name, not the path: the file must be the same wherever the data are.
        self._data = name or Path(os.path.abspath(root)).name  # noqa: PTH100 - resolve() would follow a link to it
        self._split, self._images, self._out = split, images, out
        self.contents: dict[Path, LabelFile] = {}
        self.unreadable: dict[int, str] = {}
        self._readable: set[int] = set()

    def add(
        self, name: str, groups: dict[str, list[int]], counts: dict[str, int], settings: dict[str, object]
    ) -> set[int]:
        """Add a file with the first `counts` readable images of every group, and return their indices."""
        first = {label: self._first(groups[label], count) for label, count in counts.items()}
        # A fraction may be all images, of which those that cannot be read are left out.
        short = [
            label for label, count in counts.items() if len(first[label]) < (count if "per_class" in settings else 1)
        ]
        if short:
            shortages = some_of(f"{label} ({len(first[label])})" for label in short)
            bad = f", {several(len(self.unreadable), 'image')} could not be read" if self.unreadable else ""
            raise UserError(
                f"{self._images.name}: found classes with fewer images than the number per class in {name}: "
                f"{shortages}{bad}; request fewer, or use fractions"
            )
        selection = sorted(i for indices in first.values() for i in indices)
        listing = tuple((self._images.key(i), self._class(i)) for i in selection)
        self.contents[self._out / name] = LabelFile(self._data, self._split, listing, settings)
        return set(selection)

    def _first(self, indices: list[int], count: int) -> list[int]:
        """Return the first `count` of these images that have a readable header."""
        start, readable = 0, list[int]()
        while len(readable) < count and start < len(indices):
            piece = indices[start : start + count - len(readable)]
            start += len(piece)
            self._read_headers([index for index in piece if index not in self._readable | self.unreadable.keys()])
            readable += [index for index in piece if index in self._readable]
        return readable

    def _read_headers(self, indices: list[int]) -> None:
        def problem(position: int) -> str:
            try:
                self._images.size(indices[position])
            except UserError as error:
                return str(error)
            return ""

        for index, reason in zip(indices, map_images(problem, len(indices)), strict=True):
            if reason:
                self.unreadable[index] = reason
            else:
                self._readable.add(index)

    def _class(self, index: int) -> str:
        return self._images.classes[int(self._images.labels()[index])]
