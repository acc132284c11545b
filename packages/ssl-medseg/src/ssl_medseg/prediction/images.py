"""Which images to segment, and what their masks are called."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from contrastive_core.errors import UserError
from ssl_medseg.data import DataOptions, open_with, read_split
from ssl_medseg.data.cases import ImageFile
from ssl_medseg.data.files import DICOM_ENDINGS, is_image, is_series, stem
from ssl_medseg.data.frames import read_frames


@dataclass(frozen=True)
class Wanted:
    """An image to segment.

    Attributes:
        name: of its mask, a relative path without an ending.
        image: where it is.
        is_dicom: whether it is a DICOM series.
    """

    name: str
    image: ImageFile
    is_dicom: bool


def find_images(
    data: Path,
    *,
    opening: DataOptions = DataOptions(),  # noqa: B008 - frozen
    split: Path | None = None,
    part: str = "test",
) -> list[Wanted]:
    """The images of a file, a DICOM series, a folder of any depth, or a data set.

    Args:
        data: what there is. A folder with a dataset.json is a data set, whose cases give the names, and so is what
            has a split or a stated layout; of other folders all images are taken.
        opening: which channel and frame of images with several, and how to open a data set.
        split: of a data set, the file that `ssl-medseg make-splits` wrote.
        part: of that split.

    Raises:
        UserError: nothing there, two images whose masks would have one name, a split without a data set, or a table of
            frames that names other images.
    """
    data = data.expanduser()
    stated = split is not None or opening.layout != "auto"
    if stated or (data / "dataset.json").is_file() or data.suffix.lower() in (".json", ".csv"):
        return _of_dataset(data, opening, split, part)
    if data.is_file() or is_series(data):
        dicom = data.is_dir() or data.suffix.lower() in DICOM_ENDINGS
        name = data.stem if dicom and data.is_file() else stem(data.resolve())
        return _at_their_frames([Wanted(name, _image(data, opening), dicom)], data, opening)
    if not data.is_dir():
        raise UserError(f"{data}: there is no such file or folder; expected an image, or a folder of images")
    found = [Wanted(name, _image(path, opening), path.is_dir()) for name, path in _walk(data)]
    if not found:
        raise UserError(f"{data}: found no images in it; expected NIfTI, NRRD or MetaImage files, or DICOM series")
    return _at_their_frames(_checked(found), data, opening)


def _walk(root: Path) -> list[tuple[str, Path]]:
    found = []
    for place, folders, names in os.walk(root):
        folders[:] = sorted(folder for folder in folders if not folder.startswith("."))
        folder = Path(place)
        inside = folder.relative_to(root)
        if is_series(folder):
            found.append((inside.as_posix(), folder))
        found += [
            ((inside / stem(Path(name))).as_posix(), folder / name) for name in sorted(names) if is_image(Path(name))
        ]
    return found


def _of_dataset(data: Path, opening: DataOptions, split: Path | None, part: str) -> list[Wanted]:
    dataset = open_with(data, replace(opening, allow_unlabelled=True))
    names = dataset.names if split is None else getattr(read_split(split, dataset), part)
    if not names:
        raise UserError(f"{data}: there are no cases to segment" + (f" in part {part} of {split}" if split else ""))
    found = [Wanted(case.name, case.image, is_series(Path(case.image.path))) for case in dataset.select(names)]
    return _checked(found)


def _image(path: Path, opening: DataOptions) -> ImageFile:
    return ImageFile(path, opening.channel, opening.frame)


def _at_their_frames(found: list[Wanted], data: Path, opening: DataOptions) -> list[Wanted]:
    if opening.frames is None:
        return found
    frames = read_frames(opening.frames, [wanted.name for wanted in found], owner=str(data))
    return [
        replace(wanted, image=replace(wanted.image, frame=frames.get(wanted.name, wanted.image.frame)))
        for wanted in found
    ]


def _checked(found: list[Wanted]) -> list[Wanted]:
    seen: dict[str, Path] = {}
    for wanted in found:
        other = seen.setdefault(wanted.name, Path(wanted.image.path))
        if other != Path(wanted.image.path):
            raise UserError(
                f"{other} and {wanted.image.path} would both have a mask named {wanted.name}; rename or move one"
            )
    return found
