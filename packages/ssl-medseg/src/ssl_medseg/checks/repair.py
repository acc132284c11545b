"""Repair labels and headers in a copy of a data set, and log every change."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from contrastive_core.errors import UserError, without_path
from contrastive_core.text import several
from contrastive_core.training.files import FileLocks, check_space, replace_folder, write_atomic
from ssl_medseg.datasets import Case, DataOptions
from ssl_medseg.datasets.open import label_map_for, list_cases
from ssl_medseg.io import Grid, grid_difference, read_grid, read_label_values, read_volume
from ssl_medseg.io.channels import resample_label
from ssl_medseg.io.file_types import walk
from ssl_medseg.io.label_map import ROUNDING, LabelMap
from ssl_medseg.io.mask import write_on_grid
from ssl_medseg.io.nifti import take_form
from ssl_medseg.io.volume import ImageFile, join_channels

Fix = Literal["grid", "fractions", "header", "sform", "qform"]


def repair_label(
    image: ImageFile, path: Path, labels: LabelMap | None, *, fractions: bool, grid: bool, header: bool = False
) -> dict[str, str]:
    """Repair a label in place.

    Args:
        image: Image that the label belongs to.
        path: File of the label.
        labels: Label map with the allowed values; None allows any.
        fractions: Whether to round values that are not integers.
        grid: Whether to resample the label to the image's grid by nearest neighbour, with 0 outside its field of view.
        header: Whether to copy the header of the image, if the shapes agree and the label states no position.

    Returns:
        Name of each repair -> description; empty if nothing had to be repaired.

    Raises:
        UserError: The repair is impossible or would lose a structure; the label is then left unchanged.
    """
    target = read_grid(image) if grid or header else None
    array, own = read_label_values(path, labels=labels, image=target)
    like, repairs = image if own is target else ImageFile(path), dict[str, str]()
    if fractions and np.issubdtype(array.dtype, np.floating):
        array, description = _whole(array, path, labels)
        repairs |= {"fractions": description} if description else {}
    if target and header and own.shape == target.shape and target.place_known and not own.place_known:
        own, like = target, image
        repairs["header"] = "received the header of its image, because it has the same shape and stated no position"
    if target and grid and (difference := grid_difference(own, target)):
        array, volumes = _onto(array, own, target, path)
        like = image
        repairs["grid"] = f"resampled to the grid of its image by nearest neighbour ({difference}): {volumes}"
    if repairs:
        write_on_grid(_small(array), read_volume(like.channels[0]), path)
    return repairs


def _whole(array: NDArray[Any], path: Path, labels: LabelMap | None) -> tuple[NDArray[Any], str]:
    if not np.isfinite(array).all():
        raise UserError(f"{path}: has voxels that are not finite numbers, expected label values; draw the label again")
    nearest = np.rint(array)
    off = np.abs(array - nearest)
    unknown = [] if labels is None else sorted(set(np.unique(nearest).tolist()) - set(labels.values))
    if unknown:
        raise UserError(
            f"{path}: rounding would give the values {', '.join(f'{v:g}' for v in unknown[:8])}, which are not in the "
            "label map; correct the label or the map"
        )
    n_changed, n_lost = int(np.count_nonzero(off)), int(np.count_nonzero((nearest == 0) & (off > ROUNDING)))
    if n_lost and not nearest.any():
        raise UserError(
            f"{path}: rounding would leave no structure, because its largest value is {array.max():.3g}; expected "
            "label values, but it may be a map of probabilities. Apply a threshold of your choice to it"
        )
    if rims := _rims(array, nearest):
        raise UserError(
            f"{path}: was interpolated between structures; rounding would surround others with rims of "
            + " and ".join(f"value {value:g} ({several(count, 'voxel')})" for value, count in rims.items())
            + ". Export the label again with nearest-neighbour interpolation"
        )
    description = f"rounded in {several(n_changed, 'voxel')}, by up to {off.max():.3g}" if n_changed else ""
    description += f"; {several(n_lost, 'voxel')} of them became background" if n_lost else ""
    return nearest.astype(np.int32), description


def _rims(array: NDArray[Any], nearest: NDArray[Any]) -> dict[float, int]:
    """Count the voxels that rounding gives to a value although they only lie between a lower and a higher one.

    Interpolation leaves many different values that round to the same integer, and on the edge between 0 and 2 values
    that round to 1, far from every voxel that is 1. A label stored as scaled integers has one value for each.
    """
    from scipy.ndimage import maximum_filter, minimum_filter  # noqa: PLC0415 - slow to import

    is_off = np.abs(array - nearest) > ROUNDING
    rims = {}
    for value in np.unique(nearest[is_off]).tolist():
        here = nearest == value
        if value == 0 or np.ptp(array[here]) <= ROUNDING:
            continue
        is_far = ~maximum_filter(here & ~is_off, size=5)
        between = (maximum_filter(nearest, size=3) > value) & (minimum_filter(nearest, size=3) < value)
        if count := int(np.count_nonzero(here & is_off & is_far & between)):
            rims[value] = count
    return rims


def _onto(array: NDArray[Any], own: Grid, target: Grid, path: Path) -> tuple[NDArray[Any], str]:
    if not (own.place_known and target.place_known):
        raise UserError(
            f"{path}: the header of the label or of its image states no position (form codes of 0, or an identity "
            "affine without a unit); if both have the same shape, use --repair header"
        )
    kind = array.dtype if np.issubdtype(array.dtype, np.floating) else _small(array).dtype
    result = resample_label(array.astype(kind), own, target)
    voxel, new_voxel = (abs(float(np.linalg.det(grid.affine[:3, :3]))) / 1000 for grid in (own, target))
    volumes = []
    for value in np.unique(array[array != 0]).tolist():
        before, after = np.sum(array == value) * voxel, np.sum(result == value) * new_voxel
        if not after:
            raise UserError(
                f"{path}: no voxel with the value {value:g} would lie inside the image; check whether the label "
                "belongs to another image"
            )
        volumes.append(f"value {value:g}: {before:.3g} mL before, {after:.3g} mL after")
    return result, ", ".join(volumes) or "empty before and after"


def _small(array: NDArray[Any]) -> NDArray[Any]:
    """Convert integers to the smallest of uint8, int16 and int32 that holds them; leave floats unchanged."""
    if np.issubdtype(array.dtype, np.floating):
        return array
    low, high = (int(array.min()), int(array.max())) if array.size else (0, 0)
    for kind in (np.uint8, np.int16):
        if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
            return array.astype(kind)
    return array.astype(np.int32)


LOG = "repairs.json"


@dataclass(frozen=True)
class Change:
    """Result of the repairs of one file.

    Attributes:
        case: Name of the case.
        file: ``image`` or ``label``.
        fix: Requested repair; empty if an error occurred.
        done: Description of the repair; empty if the file was not changed.
        left: Reason why the file was not changed.
    """

    case: str
    file: str
    fix: str
    done: str = ""
    left: str = ""

    def __str__(self) -> str:
        """Format as one line."""
        return f"{self.case}: {self.file} {self.done or f'not changed: {self.left}'}"


@dataclass(frozen=True)
class Repaired:
    """Repaired copy of a data set.

    Attributes:
        out: Folder of the copy.
        changes: Files that were repaired, or could not be.
    """

    out: Path
    changes: Sequence[Change]

    def __str__(self) -> str:
        """List every change and the next step."""
        count = sum(bool(change.done) for change in self.changes)
        lines = [f"  {change}" for change in self.changes]
        return "\n".join(
            [
                f"REPAIRED in the copy {self.out}: {several(count, 'change')}, {len(lines) - count} not possible (see "
                f"{LOG})",
                *lines,
                f"To see the result: ssl-medseg check {self.out} --picture-folder FOLDER --picture-all",
            ]
        )


def check_copy(data: str, out: Path, *, opening: DataOptions | None = None) -> None:
    """Check that a data set can be copied to a folder.

    Raises:
        UserError: The data set does not exist, the folder is not empty or lies inside the data set, or the disk lacks
            space.
    """
    listing, _ = list_cases(data, opening or DataOptions())
    root, out = _places(listing.root, out)
    sizes = [
        path.stat().st_size for folder, _, names in walk(root) for name in names if (path := folder / name).is_file()
    ]
    check_space(
        out, sum(sizes), what="the copied files", files=len(sizes), advice="choose another folder with --repaired"
    )


def _places(root: Path, out: Path) -> tuple[Path, Path]:
    root, out = root.resolve(), out.expanduser().resolve()
    is_taken = out.exists() and (not out.is_dir() or any(out.iterdir()))
    if is_taken or out.is_relative_to(root) or root.is_relative_to(out):
        raise UserError(f"{out}: cannot hold the repaired copy; expected a new or empty folder outside the data set")
    return root, out


def repair(data: str, out: Path, fixes: Sequence[Fix], *, opening: DataOptions | None = None) -> Repaired:
    """Copy a data set and repair the copy.

    Args:
        data: Data set, with all files in its folder.
        out: Folder for the copy; it appears only once it is complete.
        fixes: Repairs, always applied in this order: ``sform`` or ``qform`` (where the two contradict each other, the
            named one replaces the other), ``fractions`` (label values that are not integers are rounded), ``header``
            (a label with the shape of its image that states no position receives the header of the image), ``grid`` (a
            label on a different grid from its image is resampled to it by nearest neighbour).
        opening: Options for opening the data set.

    Returns:
        Folder of the copy, with the changes made and not made.

    Raises:
        UserError: The repairs exclude each other, the folder is not empty, or files lie outside the folder of the data
            set.
    """
    if not fixes or {"sform", "qform"} <= set(fixes):
        raise UserError(
            f"the requested repairs are {', '.join(fixes) or '(none)'}; expected one or more of grid, fractions, "
            "header, and either sform or qform"
        )
    listing, resolved = list_cases(data, opening or DataOptions())
    labels = label_map_for(listing, opening or DataOptions())
    root, out = _places(listing.root, out)
    base = _absolute(listing.root)
    for case in resolved.cases:
        for path in (*case.image.paths, case.label):
            if path is not None and not _absolute(path).is_relative_to(base):
                raise UserError(
                    f"{path}: lies outside the folder of the data set, {base}, and would be missing from the copy; "
                    "move it there"
                )
    new = out.with_name(f".{out.name}.tmp")
    out.parent.mkdir(parents=True, exist_ok=True)
    locks = FileLocks(out.parent)
    if locks.acquire([out.name]) is not None:
        locks.release()
        raise UserError(f"{out} is being written by another process; wait for it to end, or choose another folder")
    shutil.rmtree(new, ignore_errors=True)
    try:
        _places(listing.root, out)  # another process may have written it since
        shutil.copytree(root, new, ignore=_dead_links)
        changes = [
            replace(change, left=change.left.replace(f"{new}/", ""))
            for case in resolved.cases
            for change in _of_case(_moved(case, base, new), labels, fixes)
        ]
        log = {"format": "ssl-medseg repairs 1", "fixes": list(fixes), "changes": list(map(asdict, changes))}
        write_atomic(new / LOG, (json.dumps(log, indent=1) + "\n").encode())
        replace_folder(new, out)
    finally:
        shutil.rmtree(new, ignore_errors=True)
        locks.release()
    return Repaired(out, changes)


def _absolute(path: Path) -> Path:
    """Return an absolute path without following links, which the copy replaces by the files they lead to."""
    return Path(os.path.abspath(path))  # noqa: PTH100 - Path.resolve follows links


def _dead_links(folder: str, names: list[str]) -> list[str]:
    """Return the names in a folder of links that lead nowhere, or back to the folder or one above it."""
    above = {os.path.realpath(parent) for parent in (Path(folder), *Path(folder).parents)}
    links = [Path(folder, name) for name in names if Path(folder, name).is_symlink()]
    return [link.name for link in links if not link.exists() or os.path.realpath(link) in above]


def _moved(case: Case, base: Path, new: Path) -> Case:
    channels = [replace(image, path=new / _absolute(image.path).relative_to(base)) for image in case.image.channels]
    image = join_channels(channels)
    return replace(case, image=image, label=case.label and new / _absolute(case.label).relative_to(base))


def _of_case(case: Case, labels: LabelMap | None, fixes: Sequence[Fix]) -> list[Change]:
    changes = []
    for form in fixes:
        for file, path in (*(("image", path) for path in case.image.paths), ("label", case.label)):
            if form in ("sform", "qform") and path is not None and path.name.lower().endswith((".nii", ".nii.gz")):
                try:
                    description = take_form(path, form)
                    changes += [Change(case.name, file, form, description)] if description else []
                except UserError as error:
                    changes.append(Change(case.name, file, form, left=without_path(error, path)))
    if case.label is not None and not {"fractions", "grid", "header"}.isdisjoint(fixes):
        try:
            options = {"fractions": "fractions" in fixes, "grid": "grid" in fixes, "header": "header" in fixes}
            repairs = repair_label(case.image, case.label, labels, **options)
            changes += [Change(case.name, "label", fix, text) for fix, text in repairs.items()]
        except UserError as error:
            changes.append(Change(case.name, "label", "", left=without_path(error, case.label)))
    return changes
