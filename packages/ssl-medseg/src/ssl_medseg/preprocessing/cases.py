"""Preprocess the cases of a data set once and cache the result under the hash of the files' content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from contrastive_core.errors import UserError
from contrastive_core.training import files
from contrastive_core.training.documents import reading
from contrastive_core.training.progress import track
from ssl_medseg.datasets.dataset import Case, DataSet
from ssl_medseg.io import Grid, grid_difference, read_label, read_volume
from ssl_medseg.io.file_types import parts_of
from ssl_medseg.preprocessing import Geometry, Preprocessing, prepare, prepare_label
from ssl_medseg.preprocessing.prepare import SKIPPED, describe_erased, erased_structures, skips_slices

_VERSION = 7
"""Version of the preprocessing; raising it invalidates cached results."""


def cached(
    folder: Path | None,
    paths: Sequence[Path],
    settings: Sequence[Any],
    make: Callable[[], tuple[Tensor, dict[str, Any]]],
) -> tuple[Tensor, dict[str, Any]]:
    """Load a tensor and its JSON metadata from the cache, or compute and store them.

    Args:
        folder: Folder of the cache; None disables caching.
        paths: Files or folders that the tensor is computed from.
        settings: All other values that it depends on, as JSON.
        make: Function that computes tensor and metadata.
    """
    if folder is None:
        return make()
    key = json.dumps([_VERSION, [_digest(path) for path in paths], list(settings)], sort_keys=True)
    file = folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.safetensors"
    entry = _read(file)
    if entry is not None:
        return entry
    tensor, facts = make()
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(facts)
    metadata = {"facts": text, "sha256": _checksum(tensor, text)}
    files.write_atomic(file, save({"tensor": tensor.contiguous()}, metadata))
    return tensor, facts


def _read(file: Path) -> tuple[Tensor, dict[str, Any]] | None:
    try:
        with reading(file, "is damaged", "it is made again"), safe_open(file, framework="pt") as tensors:
            tensor, metadata = tensors.get_tensor("tensor"), tensors.metadata()
            if metadata["sha256"] != _checksum(tensor, metadata["facts"]):
                return None
            return tensor, json.loads(metadata["facts"])
    except UserError:  # missing or damaged, and computed again
        return None


def _checksum(tensor: Tensor, facts: str) -> str:
    digest = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)} {facts}".encode())
    digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()


def _digest(path: Path) -> list[str]:
    """Hash the files of an image or label, or the files in a folder."""
    try:
        inside = sorted(path.iterdir()) if path.is_dir() else parts_of(path)
        return [files.sha256(file) for file in inside if file.is_file() or not path.is_dir()]
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); expected an image or a label") from error


@dataclass(frozen=True)
class PreparedCase:
    """A case prepared for the network.

    Attributes:
        name: Name of the case.
        patient: Patient of the case.
        slices: float32 ``[S, C, H, W]`` with C channels.
        label: Classes uint8 ``[S, H, W]``; None if there is no label or none was requested.
        geometry: Geometry of the slices in the volume.
        lost: Fraction of the labelled voxels of each class outside the slices; empty without a label.
        erased: Class -> voxels and remaining pixels, for structures that resampling mostly removed.
        notes: Remarks about the image, as sentences.
        digest: Hash of the voxels of the image, see `Volume.digest`.
    """

    name: str
    patient: str
    slices: Tensor
    label: Tensor | None
    geometry: Geometry
    lost: tuple[float, ...] = ()
    erased: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    digest: str = ""


def prepare_cases(
    dataset: DataSet, names: Sequence[str], p: Preprocessing, *, labels: bool, cache: Path | None = None
) -> list[PreparedCase]:
    """Read and preprocess some cases.

    Args:
        dataset: Data set of the cases.
        names: Names of the cases, in the order of the result.
        p: Preprocessing settings.
        labels: Whether to read the labels, all of which must exist; otherwise no label file is opened.
        cache: Cache folder, keyed by the hash of the image content and the settings. It contains arrays and JSON, can
            be deleted at any time, and can be shared by several runs.

    Raises:
        UserError: An image or label cannot be used, or a label is missing or has a different grid from its image.
    """
    cases = dataset.select(names)
    lacking = [case.name for case in cases if labels and case.label is None]
    if lacking:
        raise UserError(f"{dataset.name}: {len(lacking)} cases lack the required label: {', '.join(lacking[:8])}")
    if cache is not None:
        files.remove_stale_files(cache)  # of processes that were killed
    return [_one(dataset, case, p, labels=labels, cache=cache) for case in track(cases, total=len(cases), what="cases")]


def read_truth(dataset: DataSet, case: Case, grid: Grid) -> NDArray[np.uint8]:
    """Read the label of a case as classes ``[X, Y, Z]``, and check that it is on the grid of its image.

    Args:
        dataset: Data set, which has the label map.
        case: Case with a label.
        grid: Grid of its image.

    Raises:
        UserError: There is no label, it cannot be used, or it is on another grid.
    """
    if case.label is None:
        raise UserError(f"{dataset.name}: {case.name} lacks the required label")
    classes, own = read_label(case.label, dataset.labels, image=grid)
    difference = grid_difference(own, grid)
    if difference:
        raise UserError(
            f"{case.label}: the label does not lie on the grid of its image ({difference}); expected the same grid. "
            "`ssl-medseg check` lists all such cases, and with --repair grid it writes a copy of the data set with "
            "labels on the grids of their images; or export the label again"
            + (", or list the channel it was drawn on first with --channels" if case.image.others else "")
        )
    return classes


def share_lost(cases: Sequence[PreparedCase], names: Sequence[str]) -> list[str]:
    """Describe the structures that lose labelled voxels to cropping, the case with the largest fraction first."""
    entries = [
        (share, f"{case.name}: {share:.1%} of {names[number]} lies outside the slices")
        for case in cases
        for number, share in enumerate(case.lost)
        if number and share > 0
    ]
    return [text for _, text in sorted(entries, key=lambda entry: (-entry[0], entry[1]))]


def erased_notes(cases: Sequence[PreparedCase], names: Sequence[str]) -> list[str]:
    """Describe the structures that resampling removed from labels completely or mostly."""
    return [
        f"warning: {case.name}: resampling removes a small structure: "
        f"{describe_erased(names[number], *counts, case.geometry)}"
        for case in cases
        for number, counts in case.erased.items()
    ]


def skipped_notes(cases: Sequence[PreparedCase]) -> list[str]:
    """Describe the labels in which only single slices contain structures."""
    return [
        f"warning: {case.name}: {SKIPPED}"
        for case in cases
        if case.label is not None and skips_slices((case.label > 0).flatten(1).any(1).numpy())
    ]


def _one(dataset: DataSet, case: Case, p: Preprocessing, *, labels: bool, cache: Path | None) -> PreparedCase:
    settings: list[Any] = [p.to_json()]
    for image in case.image.channels:
        settings += [image.channel, image.frame, image.spacing, image.trust_pixdim, image.series, image.name]
    paths = [Path(image.path) for image in case.image.channels]
    slices, facts = cached(cache, paths, ["image", *settings], lambda: _image(case, p))
    geometry = Geometry.from_json(facts["geometry"])
    common: dict[str, Any] = {"notes": tuple(facts["notes"]), "digest": facts["digest"]}
    if not labels or case.label is None:
        return PreparedCase(case.name, case.patient, slices, None, geometry, **common)
    key = ["label", *settings, dataset.labels.to_json(), facts["geometry"]]
    label, label_facts = cached(cache, [case.label], key, lambda: _label(dataset, case, geometry))
    erased = {int(number): (counts[0], counts[1]) for number, counts in label_facts["erased"].items()}
    return PreparedCase(case.name, case.patient, slices, label, geometry, tuple(label_facts["lost"]), erased, **common)


def _image(case: Case, p: Preprocessing) -> tuple[Tensor, dict[str, Any]]:
    volume = read_volume(case.image)
    prepared = prepare(volume, p)
    facts = {"geometry": prepared.geometry.to_json(), "notes": list(prepared.notes), "digest": volume.digest}
    return prepared.slices, facts


def _label(dataset: DataSet, case: Case, geometry: Geometry) -> tuple[Tensor, dict[str, Any]]:
    classes = read_truth(dataset, case, geometry.grid)
    slices, lost = prepare_label(classes, geometry)
    shares = [float(share) for share in lost] + [0.0] * (len(dataset.labels) - len(lost))
    return slices, {"lost": shares, "erased": erased_structures(classes, slices, geometry)}
