"""Segment volumes: find the images, run the network over their slices, and restore masks to the images' grids."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from contrastive_core.errors import UserError
from contrastive_core.training.progress import track
from ssl_medseg.datasets import DataOptions, open_with, read_split
from ssl_medseg.datasets.channel_groups import Wanted, group_channels
from ssl_medseg.datasets.dataset import Case, DataSet
from ssl_medseg.datasets.open import read_frames
from ssl_medseg.evaluation.uncertainty import agreement, predictive_entropy
from ssl_medseg.io import read_volume, write_mask
from ssl_medseg.io.dicom import list_series
from ssl_medseg.io.file_types import DICOM_ENDINGS, is_companion, is_image, is_series, stem, why_unread, without_paths
from ssl_medseg.io.volume import Volume
from ssl_medseg.models.checkpoint import load_segmenter
from ssl_medseg.models.largest_parts import largest_parts
from ssl_medseg.models.network import Refinement, mirrored_probabilities
from ssl_medseg.models.network import probabilities as class_probabilities
from ssl_medseg.preprocessing import Preprocessing, place, prepare, restore_slices


def find_images(
    data: Path,
    *,
    opening: DataOptions = DataOptions(),  # noqa: B008 - frozen
    split: Path | None = None,
    part: str = "test",
    channels: Sequence[str] = (),
    numbers: Sequence[int] = (),
) -> list[Wanted]:
    """The images of a file, a DICOM series, a folder of any depth, or a data set.

    Args:
        data: what there is. A folder with a dataset.json is a data set, whose cases give the names, and so is what
            has a split or a stated layout; of other folders all images are taken.
        opening: which channels and frame of images with several, and how to open a data set.
        split: of a data set, the file that `ssl-medseg make-splits` wrote.
        part: of that split.
        channels: of the model, in order. Where it has several, the files and series of a patient are put together: by
            the name or number at the end of a file's name, and by the description of a DICOM series.
        numbers: of these channels in the data of training, if they were numbered.

    Raises:
        UserError: nothing there, two images whose masks would have one name, a split without a data set, or a table of
            frames that names other images.
    """
    data = data.expanduser()
    stated = split is not None or opening.layout != "auto"
    if stated or (data / "dataset.json").is_file() or data.suffix.lower() in (".json", ".csv"):
        return _of_dataset(data, opening, split, part, channels=channels, numbers=numbers)
    if data.is_file() or is_series(data):
        dicom = data.is_dir() or data.suffix.lower() in DICOM_ENDINGS
        name = data.stem if dicom and data.is_file() else stem(data.resolve())
        found = _series(name, data, opening) if data.is_dir() else [Wanted(name, opening.image(data), dicom)]
        found = group_channels(found, channels, opening, root=data.parent, numbers=numbers)
        return _at_their_frames(_checked(found), data, opening)
    if not data.is_dir():
        raise UserError(f"{data}: there is no such file or folder; expected an image, or a folder of images")
    found = [
        wanted
        for name, path in _walk(data)
        for wanted in (_series(name, path, opening) if path.is_dir() else [Wanted(name, opening.image(path), False)])
    ]
    if not found:
        raise UserError(f"{data}: found no images in it; expected NIfTI, NRRD or MetaImage files, or DICOM series")
    found = group_channels(found, channels, opening, root=data, numbers=numbers)
    return _at_their_frames(_checked(found), data, opening)


def _walk(root: Path) -> list[tuple[str, Path]]:
    found = []
    for current, folders, names in os.walk(root):
        folders[:] = sorted(folder for folder in folders if not folder.startswith("."))
        folder = Path(current)
        inside = folder.relative_to(root)
        if is_series(folder):
            found.append((inside.as_posix(), folder))
        found += [
            ((inside / stem(Path(name))).as_posix(), folder / name) for name in sorted(names) if is_image(folder / name)
        ]
    return found


def _series(name: str, folder: Path, opening: DataOptions) -> list[Wanted]:
    """The series of a folder: one of its name, or several below it."""
    try:
        series = list_series(folder)
    except UserError:  # is said of this image when it is read
        series = []
    if len(series) < 2:
        return [Wanted(name, opening.image(folder), True)]
    return [Wanted(f"{name}/{one.name}", replace(opening.image(folder), series=one.uid), True) for one in series]


def unread_files(data: Path, found: Sequence[Wanted]) -> list[str]:
    """Files of a folder that hold images or seem to, and are not among those found: name and reason."""
    if not data.is_dir():
        return []
    used = {path for wanted in found for path in wanted.image.paths}
    unread = []
    for current, folders, names in os.walk(data):
        folder = Path(current)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if folder in used:
            continue
        for name in sorted(names):
            reason = why_unread(folder / name)
            if reason and not is_companion(folder / name):
                unread.append(f"{(folder / name).relative_to(data).as_posix()}: {reason}")
    return unread


def _of_dataset(
    data: Path,
    opening: DataOptions,
    split: Path | None,
    part: str,
    *,
    channels: Sequence[str],
    numbers: Sequence[int],
) -> list[Wanted]:
    dataset = open_with(data, replace(opening, allow_unlabelled=True))
    names = dataset.names if split is None else getattr(read_split(split, dataset), part)
    if not names:
        raise UserError(f"{data}: there are no cases to segment" + (f" in part {part} of {split}" if split else ""))
    if channels:
        dataset = dataset.with_channels(channels, numbers)
    found = [
        Wanted(case.name, case.image, is_series(Path(case.image.path)), case.label) for case in dataset.select(names)
    ]
    return _checked(found)


def _at_their_frames(found: list[Wanted], data: Path, opening: DataOptions) -> list[Wanted]:
    if opening.frame_table is None:
        return found
    frames = read_frames(opening.frame_table, [wanted.name for wanted in found], owner=str(data))
    return [replace(wanted, image=wanted.image.at_frame(frames.get(wanted.name))) for wanted in found]


def _checked(found: list[Wanted]) -> list[Wanted]:
    seen: dict[str, Path] = {}
    for wanted in found:
        other = seen.setdefault(wanted.name, Path(wanted.image.path))
        if other != Path(wanted.image.path):
            raise UserError(
                f"{other} and {wanted.image.path} would both have a mask named {wanted.name}; rename or move one"
            )
    return found


@dataclass(frozen=True)
class Segmented:
    """What the network says of a volume.

    Attributes:
        classes: uint8 ``[X, Y, Z]`` on the volume's own grid, 0 the background.
        probabilities: float32 ``[C, X, Y, Z]``, if they were asked for.
        notes: what was done beyond the settings or found odd, in plain words.
        agreement: of each structure, between the predictions of the volume and of its mirror images, if it was asked
            for; None where none of them contains the structure.
        uncertainty: float32 ``[X, Y, Z]``, the entropy of the mean of these predictions in [0, 1], if it was asked for.
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
    refinement: Refinement = Refinement(),  # noqa: B008 - frozen
    uncertainty: bool = False,
) -> Segmented:
    """Segment a volume.

    Probabilities, not decisions, are brought back to the volume's grid, where the most probable class is taken. Beyond
    the volume itself memory is that of one batch of slices, unless all probabilities are asked for.

    Args:
        volume: any volume.
        network: slices ``[N, K, H, W]`` to logits ``[N, C, H, W]``, in inference mode, on its device.
        p: the preprocessing it was trained with.
        batch_size: slices per forward pass at most. A CPU gets fewer: one of 192 x 192 pixels, nine of 64 x 64; more
            do not fit its caches and take up to twice as long.
        probabilities: give them too.
        refinement: average over mirrored slices; keep the largest connected part of some structures, the rest of which
            becomes background. The probabilities do not lose the smaller parts.
        uncertainty: also compare the predictions of the volume and of its mirror images; takes four passes of the
            network. The mask stays that of `refinement`.

    Raises:
        UserError: the volume cannot be prepared.
    """
    prepared = prepare(volume, p)
    geometry, device = prepared.geometry, next(network.parameters()).device
    classes = np.empty((geometry.slices, *geometry.plane), dtype=np.uint8)
    kept, views, entropies = [], [], []
    count = _slices_at_once(batch_size, p, device)
    for start in range(0, geometry.slices, count):
        batch = prepared.slices[start : start + count].to(device).contiguous(memory_format=torch.channels_last)
        if uncertainty:
            mirrored = [restore_slices(view, geometry) for view in mirrored_probabilities(network, batch)]
            mean = torch.stack(mirrored).mean(0)
            native = mean if refinement.mirror else mirrored[0]
            views.append([view.max(dim=1).indices.to(torch.uint8).cpu().numpy() for view in mirrored])
            entropies.append(predictive_entropy(mean).cpu().numpy())
        else:
            native = restore_slices(class_probabilities(network, batch, mirror=refinement.mirror), geometry)
        # Not argmax: over a middle axis on a CPU it takes twenty times as long.
        classes[start : start + count] = native.max(dim=1).indices.to(torch.uint8).cpu().numpy()
        if probabilities:
            kept.append(native.cpu().numpy())
    mask = place(classes, geometry)
    if refinement.largest:
        mask = largest_parts(mask, refinement.largest)
    agreements, entropy = None, None
    if uncertainty:
        masks = [np.concatenate(slices) for slices in zip(*views, strict=True)]
        agreements = agreement(masks, classes=native.shape[1])
        entropy = place(np.concatenate(entropies), geometry)
    if not probabilities:
        return Segmented(mask, None, prepared.notes, agreements, entropy)
    native_all = np.concatenate(kept)
    by_class = np.stack([place(native_all[:, number], geometry) for number in range(native_all.shape[1])])
    return Segmented(mask, by_class, prepared.notes, agreements, entropy)


def _slices_at_once(most: int, p: Preprocessing, device: torch.device) -> int:
    if device.type != "cpu":
        return most
    return max(1, min(most, _PIXELS_ON_CPU // (p.size[0] * p.size[1])))


@dataclass(frozen=True)
class Predicted:
    """What became of the cases.

    Attributes:
        masks: case -> file.
        failed: case -> why it has none.
        labelled: names of the cases the segmenter was trained on with their labels, as its model says.
    """

    masks: dict[str, Path]
    failed: dict[str, str]
    labelled: tuple[str, ...]


def is_model(path: Path) -> bool:
    """Whether a folder is that of a run or of a model, and not one of masks."""
    return (path / "model.json").is_file() or (path / "model" / "model.json").is_file()


def predict_cases(
    model: Path, dataset: DataSet, cases: Sequence[Case], folder: Path, *, batch_size: int, device: str
) -> Predicted:
    """Segment cases and write their masks.

    Args:
        model: a run folder or model folder.
        dataset: of the cases.
        cases: to be segmented.
        folder: of the masks, one NIfTI file per case.
        batch_size: slices per forward pass.
        device: Device to run on: auto, cpu, cuda or mps.

    Raises:
        UserError: no model, or one of other structures than the data set's.
    """
    segmenter = load_segmenter(model, device=device)
    if segmenter.labels != dataset.labels:
        raise UserError(
            f"{model}: was trained for {segmenter.labels}, and {dataset.name} has {dataset.labels}; expected the same "
            "names and values. Give the label map of training (--label-map)"
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
            found = segment(
                volume, segmenter.network, segmenter.preprocessing, batch_size=batch_size,
                refinement=segmenter.refinement,
            )  # fmt: skip
            path = folder / f"{case.name}.nii.gz"
            write_mask(found.classes, volume, path, dataset.labels)
            masks[case.name] = path
        except UserError as error:
            failed[case.name] = without_paths(error, case.image.paths)
    return Predicted(masks, failed, tuple(segmenter.details.get("labelled", ())))
