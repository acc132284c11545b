"""Segment volumes: find images, apply the network to their slices, and map the masks back to the image grids."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from contrastive_core.errors import UserError, without_path
from contrastive_core.training.config import InferenceOptions as BatchOptions
from contrastive_core.training.config import check_choices
from contrastive_core.training.launch import autocast
from contrastive_core.training.names import check_label
from contrastive_core.training.progress import track
from ssl_medseg.datasets import DataOptions, open_with, read_split
from ssl_medseg.datasets.channel_groups import InputImage, group_channels
from ssl_medseg.datasets.dataset import Case, DataSet
from ssl_medseg.datasets.layouts.folders import label_folders, labels_beside
from ssl_medseg.datasets.open import read_frames
from ssl_medseg.evaluation.uncertainty import agreement, predictive_entropy
from ssl_medseg.io import read_volume, write_mask
from ssl_medseg.io.dicom import NoImagesError, list_series, series_images
from ssl_medseg.io.file_types import (
    DICOM_ENDINGS,
    has_dicom_mark,
    is_companion,
    is_image,
    is_segmentation,
    is_series,
    stem,
    walk,
    why_unread,
    without_paths,
)
from ssl_medseg.io.label_map import LabelMap
from ssl_medseg.io.mask import has_predictions
from ssl_medseg.io.volume import ImageFile, Volume
from ssl_medseg.models.largest_parts import largest_parts
from ssl_medseg.models.model_folder import load_segmenter
from ssl_medseg.models.network import Refinement, mirrored_probabilities, turned_probabilities
from ssl_medseg.models.network import probabilities as class_probabilities
from ssl_medseg.preprocessing import Preprocessing, place, prepare, restore_slices
from ssl_medseg.preprocessing.prepare import axis_letters

InferencePrecision = Literal["auto", "32-true", "bf16-mixed"]
"""Number format of the network in prediction."""


@dataclass(frozen=True)
class InferenceOptions(BatchOptions):
    """Batch size and device of a command that segments volumes.

    Args:
        batch_size: Largest number of slices per forward pass; memory grows with it. On a CPU, the number is limited to
            what fits in its caches.
        precision: Number format of the network: 32-true, or bf16-mixed, which takes about two thirds of the time on
            devices with bfloat16 arithmetic and rounds the probabilities; auto selects it on these devices. On others
            it is emulated and takes several times as long.
    """

    batch_size: int = 16
    precision: InferencePrecision = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choices(self, precision=InferencePrecision)


def find_images(
    data: Path,
    *,
    opening: DataOptions = DataOptions(),  # noqa: B008 - frozen
    split: Path | None = None,
    part: str = "test",
    channels: Sequence[str] = (),
    numbers: Sequence[int] = (),
) -> list[InputImage]:
    """Find the images to segment in a file, a DICOM series, a folder of any depth, or a data set.

    Args:
        data: File, DICOM series, folder or data set. A folder counts as a data set if it contains a dataset.json, or if
            a split or a layout is given; from other folders, all images are used.
        opening: Options for opening a data set, and channels and frame of multi-channel or multi-frame images.
        split: Split file of the data set.
        part: Part of the split.
        channels: Channels of the model, in order. If there are several, files are combined to cases by the channel name
            or number at the end of their names, and DICOM series by their descriptions.
        numbers: Numbers of these channels in the training data, if they were numbered.

    Returns:
        Images, and the files that are not read with the reasons.

    Raises:
        UserError: There are no images, two masks would have the same name, a split is given without a data set, or the
            table of frames lists unknown images.
    """
    data = data.expanduser()
    is_dataset = split is not None or opening.layout != "auto"
    if is_dataset or (data / "dataset.json").is_file() or data.suffix.lower() in (".json", ".csv"):
        return _of_dataset(data, opening, split, part, channels=channels, numbers=numbers)
    if data.is_file():
        dicom = data.suffix.lower() in DICOM_ENDINGS or has_dicom_mark(data)
        name = data.stem if dicom else stem(data)
        inputs = [InputImage(name, opening.image(data), dicom)]
        inputs = group_channels(inputs, channels, opening, root=data.parent, numbers=numbers)
        return _at_their_frames(_checked(inputs), data, opening)
    if not data.is_dir():
        raise UserError(f"{data}: there is no such file or folder; expected an image or a folder with images")
    places = _walk(data, channels)
    inputs = [
        source
        for name, path in places
        for source in (
            _series(name, path, opening) if path.is_dir() else [InputImage(name, opening.image(path), False)]
        )
    ]
    if not inputs:
        lines = "".join(f"\n  {line}" for line in unread_files(data, inputs)[:_UNREAD_SHOWN])
        raise UserError(f"{data}: contains no images; expected NIfTI, NRRD or MetaImage files, or DICOM series{lines}")
    root = data.parent if [path for _, path in places] == [data] else data  # the folder of one series has its name
    inputs = group_channels(inputs, channels, opening, root=root, numbers=numbers)
    return _at_their_frames(_checked(inputs), data, opening)


_UNREAD_SHOWN = 10


def _walk(root: Path, channels: Sequence[str] = ()) -> list[tuple[str, Path]]:
    places = []
    for folder, folders, names in walk(root):
        if folder != root and has_predictions(folder):
            folders.clear()
            continue
        for name in label_folders(folders, [folder / name for name in names]):
            folders.remove(name)
        labels = labels_beside(folder, names, channels)
        inside = folder.relative_to(root)
        if is_series(folder):
            places.append((stem(root.resolve()) if folder == root else inside.as_posix(), folder))
        images = [
            path
            for name in names
            if name not in labels and is_image(path := folder / name) and not is_segmentation(path)
        ]
        places += [((inside / stem(path)).as_posix(), path) for path in images]
    return places


def _series(name: str, folder: Path, opening: DataOptions) -> list[InputImage]:
    """List the series of a folder: one with the name of the folder, or several below it."""
    try:
        series = list_series(folder)
    except NoImagesError:  # reported as not used
        return []
    except UserError:  # reported when the image is read
        series = []
    if len(series) < 2:
        return [InputImage(name, opening.image(folder), True)]
    return [InputImage(f"{name}/{one.name}", replace(opening.image(folder), series=one.uid), True) for one in series]


def unread_files(data: Path, inputs: Sequence[InputImage]) -> list[str]:
    """List files in a folder that appear to be images but are not used, with the reason."""
    if not data.is_dir():
        return []
    used = {path for source in inputs for path in source.image.paths}
    unread = []
    for folder, folders, names in walk(data):
        if folder in used:
            continue
        if folder != data and has_predictions(folder):
            folders.clear()
            unread.append(f"{folder.relative_to(data).as_posix()}: masks of `predict`, which are not segmented")
            continue
        for name in label_folders(folders, [folder / name for name in names]):
            folders.remove(name)
            unread.append(f"{(folder / name).relative_to(data).as_posix()}: labels, which are not segmented")
        if is_series(folder):
            unread += [f"{folder.relative_to(data).as_posix()}: {why}" for why in _no_images(folder)]
        labels = labels_beside(folder, names)
        for name in names:
            reason = ""
            if folder / name not in used:
                reason = why_unread(folder / name) or ("a label, which is not segmented" if name in labels else "")
            if reason and not is_companion(folder / name):
                unread.append(f"{(folder / name).relative_to(data).as_posix()}: {reason}")
    return unread


def _no_images(folder: Path) -> list[str]:
    """Explain why a folder with DICOM files has no images; empty if it has some, or cannot be read."""
    try:
        series_images(folder, pixels=False)
    except NoImagesError as error:
        return [without_path(error, folder)]
    except UserError:
        pass
    return []


def _of_dataset(
    data: Path,
    opening: DataOptions,
    split: Path | None,
    part: str,
    *,
    channels: Sequence[str],
    numbers: Sequence[int],
) -> list[InputImage]:
    dataset = open_with(data, replace(opening, allow_unlabelled=True))
    names = dataset.names if split is None else getattr(read_split(split, dataset), part)
    if not names:
        raise UserError(f"{data}: there are no cases to segment" + (f" in part {part} of {split}" if split else ""))
    if channels:
        dataset = dataset.with_channels(channels, numbers)
    inputs = [
        InputImage(case.name, case.image, is_series(Path(case.image.path)), case.label)
        for case in dataset.select(names)
    ]
    return _checked(inputs)


def _at_their_frames(inputs: list[InputImage], data: Path, opening: DataOptions) -> list[InputImage]:
    if opening.frame_table is None:
        return inputs
    frames = read_frames(opening.frame_table, [source.name for source in inputs], owner=str(data))
    return [replace(source, image=source.image.at_frame(frames.get(source.name))) for source in inputs]


def _checked(inputs: list[InputImage]) -> list[InputImage]:
    seen: dict[str, Path] = {}
    for source in inputs:
        check_label(source.name, what="image", source=Path(source.image.path).parent)
        other = seen.setdefault(source.name, Path(source.image.path))
        if other != Path(source.image.path):
            raise UserError(
                f"{other} and {source.image.path} would both have a mask named {source.name}; rename or move one"
            )
    return inputs


@dataclass(frozen=True)
class Segmented:
    """Segmentation of a volume.

    Attributes:
        classes: uint8 ``[X, Y, Z]`` on the grid of the volume; 0 is the background.
        probabilities: float32 ``[C, X, Y, Z]``, if requested.
        notes: Remarks about unusual properties and additional processing.
        agreement: Agreement of each structure between the predictions of the volume and its mirror images (or quarter
            turns, see `segment`), if requested; None for a structure that none of them contains.
        uncertainty: float32 ``[X, Y, Z]``, entropy of the mean of these predictions in [0, 1], if requested.
    """

    classes: NDArray[np.uint8]
    probabilities: NDArray[np.float32] | None
    notes: tuple[str, ...]
    agreement: tuple[float | None, ...] | None = None
    uncertainty: NDArray[np.float32] | None = None


_PIXELS_ON_CPU = 192 * 192


@torch.inference_mode()
def segment(
    volume: Volume,
    network: nn.Module,
    p: Preprocessing,
    *,
    batch_size: int = 16,
    probabilities: bool = False,
    precision: InferencePrecision = "32-true",
    refinement: Refinement = Refinement(),  # noqa: B008 - frozen
    uncertainty: bool = False,
    sided: bool = False,
) -> Segmented:
    """Segment a volume.

    Probabilities are resampled to the grid of the volume before the most probable class is chosen. In addition to the
    volume, one batch of slices is in memory, unless all probabilities are requested.

    Args:
        volume: Volume.
        network: Network in inference mode on its device; maps slices ``[N, K, H, W]`` to logits ``[N, C, H, W]``.
        p: Preprocessing used in training.
        batch_size: Largest number of slices per forward pass. A CPU uses fewer, one of 192 x 192 pixels or nine of
            64 x 64, because more do not fit into its caches and take up to twice as long.
        probabilities: Whether to return the probabilities.
        precision: Number format of the network. Probabilities are float32 in any case.
        refinement: Averaging over mirrored slices, and structures of which only the largest connected component is
            kept; the rest becomes background. The probabilities are not changed.
        uncertainty: Whether to compare the predictions of the volume and its mirror images, which takes four forward
            passes. The mask remains that of `refinement`.
        sided: Whether structures are named after a side of the body. Mirror images exchange the sides, so slices
            rotated by quarter turns are compared instead, unless `refinement` includes mirroring.

    Raises:
        UserError: The volume cannot be prepared, or the network returns values that are not finite.
    """
    prepared = prepare(volume, p)
    geometry, device = prepared.geometry, next(network.parameters()).device
    notes = prepared.notes
    if p.directions is None and geometry.place_known:
        notes += (
            f"the model uses images as stored, and this one is stored as {axis_letters(volume.grid)}: if those of the "
            "training were stored differently, its left and right may be exchanged",
        )
    classes = np.empty((geometry.slices, *geometry.plane), dtype=np.uint8)
    maps, views, entropies = [], [], []
    count = _slices_at_once(batch_size, p, device)
    for start in range(0, geometry.slices, count):
        batch = prepared.slices[start : start + count].to(device).contiguous(memory_format=torch.channels_last)
        if uncertainty:
            with autocast(precision, device):
                four = turned_probabilities if sided and not refinement.mirror else mirrored_probabilities
                output = four(network, batch)
            restored = [restore_slices(view, geometry) for view in output]
            mean = torch.stack(restored).mean(0)
            native = mean if refinement.mirror else restored[0]
            views.append([view.max(dim=1).indices.to(torch.uint8).cpu().numpy() for view in restored])
            entropies.append(predictive_entropy(mean).cpu().numpy())
        else:
            with autocast(precision, device):
                output = class_probabilities(network, batch, mirror=refinement.mirror)
            native = restore_slices(output, geometry)
        if not output.isfinite().all():  # the first class, background, would be taken for the most probable one
            raise UserError(
                f"{volume.image.path}: the network returned values that are not finite, so there is no mask; expected "
                "finite scores of the classes. Check the weights of the model, and the intensities of the image"
            )
        # max instead of argmax, which takes twenty times as long over a middle axis on a CPU.
        classes[start : start + count] = native.max(dim=1).indices.to(torch.uint8).cpu().numpy()
        if probabilities:
            maps.append(native.cpu().numpy())
    mask = place(classes, geometry)
    if refinement.largest:
        mask = largest_parts(mask, refinement.largest)
    agreements, entropy = None, None
    if uncertainty:
        masks = [np.concatenate(slices) for slices in zip(*views, strict=True)]
        agreements = agreement(masks, classes=native.shape[1])
        entropy = place(np.concatenate(entropies), geometry)
    if not probabilities:
        return Segmented(mask, None, notes, agreements, entropy)
    native_all = np.concatenate(maps)
    by_class = np.stack([place(native_all[:, number], geometry) for number in range(native_all.shape[1])])
    return Segmented(mask, by_class, notes, agreements, entropy)


def _slices_at_once(most: int, p: Preprocessing, device: torch.device) -> int:
    if device.type != "cpu":
        return most
    return max(1, min(most, _PIXELS_ON_CPU // (p.size[0] * p.size[1])))


@dataclass(frozen=True)
class Predicted:
    """Result of predicting several cases.

    Attributes:
        masks: Case -> mask file.
        failed: Case -> reason why it has no mask.
        labelled: Names of the cases whose labels were used to train the segmenter.
        labels: Label map of the segmenter.
    """

    masks: dict[str, Path]
    failed: dict[str, str]
    labelled: tuple[str, ...]
    labels: LabelMap


def is_model(path: Path) -> bool:
    """Return whether a folder is a run folder or model folder, rather than a folder of masks."""
    return (path / "model.json").is_file() or (path / "model" / "model.json").is_file()


_MASK_SHARE = 0.02


def bytes_of_masks(images: Iterable[ImageFile], *, maps: int = 0) -> int:
    """Estimate the size in bytes of the masks of images, and of `maps` further maps per image.

    A compressed mask is a few percent of its image in size; a map of probabilities is about as large as the image.
    """
    n_bytes = sum(_bytes(path) for image in images for path in image.paths[:1])
    return round(n_bytes * (_MASK_SHARE + maps))


def _bytes(path: Path) -> int:
    """Return the size of a file, or of the files in a folder; 0 if there is no access."""
    try:
        inside = list(path.iterdir()) if path.is_dir() else [path]
        return sum(file.stat().st_size for file in inside if file.is_file())
    except OSError:
        return 0


def predict_cases(
    model: Path, dataset: DataSet, cases: Sequence[Case], folder: Path, *, inference: InferenceOptions
) -> Predicted:
    """Segment cases and write their masks.

    Args:
        model: Run folder or model folder.
        dataset: Data set of the cases.
        cases: Cases to segment.
        folder: Folder for the masks, one NIfTI file per case.
        inference: Batch size and device.

    Returns:
        Mask files, cases that failed, cases whose labels the model was trained with, and its label map.

    Raises:
        UserError: There is no model, or the data set lacks one of its structures, or has another value for it.
    """
    segmenter = load_segmenter(model, device=inference.device)
    own, given = (set(zip(one.names, one.values, strict=True)) for one in (segmenter.labels, dataset.labels))
    if not own <= given:
        raise UserError(
            f"{model} was trained for {segmenter.labels}, but {dataset.name} has {dataset.labels}; expected the same "
            "names and values. Pass the label map of the training (--label-map)"
        )
    settings = segmenter.preprocessing
    dataset = dataset.with_channels(settings.channels, settings.channel_numbers)
    cases = dataset.select(case.name for case in cases)
    folder.mkdir(parents=True, exist_ok=True)
    masks: dict[str, Path] = {}
    failed: dict[str, str] = {}
    for case in track(cases, total=len(cases), what="volumes"):
        try:
            volume = read_volume(case.image)
            prediction = segment(
                volume, segmenter.network, segmenter.preprocessing, batch_size=inference.batch_size,
                precision=inference.precision, refinement=segmenter.refinement,
            )  # fmt: skip
            path = folder / f"{case.name}.nii.gz"
            write_mask(prediction.classes, volume, path, segmenter.labels)
            masks[case.name] = path
        except UserError as error:
            failed[case.name] = without_paths(error, case.image.paths)
    return Predicted(masks, failed, tuple(segmenter.details.get("labelled", ())), segmenter.labels)
