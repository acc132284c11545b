"""Detect the layout of a data set and list its files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from contrastive_core.errors import UserError
from contrastive_core.training.documents import read_object
from ssl_medseg.datasets.layouts.bids import is_bids, list_bids
from ssl_medseg.datasets.layouts.decathlon import list_decathlon
from ssl_medseg.datasets.layouts.folders import IMAGES, UNLABELLED, folders_of, list_folders, list_table
from ssl_medseg.datasets.layouts.listing import Listing
from ssl_medseg.datasets.layouts.nnunet import has_channel_suffix, list_nnunet
from ssl_medseg.datasets.options import DataOptions
from ssl_medseg.io.file_types import (
    images_in,
    is_companion,
    is_dicom,
    is_image,
    is_segmentation,
    is_series,
    walk,
    why_unread,
)
from ssl_medseg.io.mask import has_predictions

_LISTERS: dict[str, Callable[[Path, DataOptions], Listing]] = {
    "decathlon": list_decathlon,
    "nnunet": list_nnunet,
    "bids": list_bids,
    "folders": list_folders,
    "csv": list_table,
}
_EXPECTED = (
    "expected a folder with dataset.json (Medical Decathlon), imagesTr and labelsTr with files such as "
    "CASE_0000.nii.gz (nnU-Net), sub-XX folders (BIDS) or images and labels, or a CSV file with the column image"
)


def list_files(source: Path, options: DataOptions) -> Listing:
    """List the cases of a data set in any supported layout.

    Raises:
        UserError: The data set does not exist, or its layout is not recognised.
    """
    if not source.exists():
        raise UserError(f"{source}: there is no such file or folder; {_EXPECTED}")
    layout = options.layout if options.layout != "auto" else _recognised(source)
    if layout == "csv" and source.is_dir():
        raise UserError(f"{source} is a folder, expected a CSV file")
    if layout == "decathlon" and source.is_dir():
        source /= "dataset.json"
    elif layout in ("nnunet", "bids", "folders") and source.is_file():
        source = source.parent
    listing = _LISTERS[layout](source, options)
    return replace(listing, unused=list(_unused(listing)))


def _unused(listing: Listing) -> Iterator[tuple[Path, str]]:
    """Find files in the folder of the data set that are, or appear to be, images and that the layout does not use."""
    claimed = {path for entry in listing.entries for path in (*entry.image.paths, entry.label)}
    claimed |= {*listing.labels_without_image, *listing.unlisted, *listing.set_aside}
    used = {os.path.realpath(path) for path in claimed if path is not None}  # where links lead to
    beside = {path.parent for path in claimed if path is not None} | {*folders_of(listing.root, IMAGES)}
    # A CSV file may be anywhere; only the folders that it names belong to the data set.
    folders = [(folder, list[str](), [path.name for path in folder.iterdir()]) for folder in beside if folder.is_dir()]
    for folder, inside, names in sorted(folders) if listing.layout == "csv" else walk(listing.root):
        is_ours = has_predictions(folder) or any(name in names for name in ("config.yaml", "model.json"))
        if is_ours or os.path.realpath(folder) in used:
            inside.clear()
            continue
        if folder != listing.root and is_series(folder):
            if folder not in beside and not any(is_image(folder / name) for name in names):
                yield folder, "a DICOM series that the layout does not use"
                continue
            among = [path for name in names if is_dicom(path := folder / name) and os.path.realpath(path) not in used]
            yield from ((path, "a DICOM file among the images") for path in among)
        for name in sorted(names):
            path = folder / name
            if os.path.realpath(path) in used or path.is_dir() or is_companion(path):
                continue
            if is_image(path) and path.exists() and not is_segmentation(path):
                yield path, "an image that the layout does not use"
            elif folder in beside and (reason := why_unread(path)):
                yield path, reason


def _recognised(source: Path) -> str:
    if source.suffix.lower() in (".csv", ".tsv"):
        return "csv"
    root = source if source.is_dir() else source.parent
    list_file = root / "dataset.json" if source.is_dir() else source
    has_channels = any(has_channel_suffix(path) for path in images_in(root / "imagesTr", series=False))
    if list_file.suffix == ".json" and list_file.is_file():
        content = read_object(list_file)
        has_lists = any(isinstance(content.get(part), list) for part in ("training", "unlabeled", "unlabelled", "test"))
        # Version 1 of nnU-Net lists cases as the Decathlon does, without the channel number at the end of the names.
        if "channel_names" in content or (has_channels and not _first_exists(content, root)):
            return "nnunet"
        if has_lists:
            return "decathlon"
    if source.is_dir():
        if has_channels:
            return "nnunet"
        if is_bids(root):
            return "bids"
        if folders_of(root, (*IMAGES, *UNLABELLED)):
            return "folders"
    if source.is_dir() and any(is_image(mask) for mask in root.glob("*/segmentations/*")):
        raise UserError(
            f"{source}: has the layout of TotalSegmentator, with a binary mask of every structure in segmentations; "
            "expected one label per case. Write the masks of each case into one file with a value per structure, and "
            "move these to labels/CASE.nii.gz and the images to images/CASE.nii.gz"
        )
    raise UserError(f"{source}: found no data set in a known layout; {_EXPECTED}")


def _first_exists(content: object, root: Path) -> bool:
    training = content.get("training") if isinstance(content, dict) else None
    first = training[0] if isinstance(training, list) and training else None
    image = first.get("image") if isinstance(first, dict) else None
    return isinstance(image, str) and (root / image).is_file()
