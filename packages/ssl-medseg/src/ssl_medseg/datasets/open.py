"""Open a data set: list its files, resolve cases and patients, and reject contradictions."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from contrastive_core.app.checks import finding_lines, of_level
from contrastive_core.errors import UserError
from ssl_medseg.datasets.channels import apply_channels
from ssl_medseg.datasets.dataset import DataSet
from ssl_medseg.datasets.layouts.detect import list_files
from ssl_medseg.datasets.layouts.listing import Listing
from ssl_medseg.datasets.options import DataOptions, Layout
from ssl_medseg.datasets.phases import phase_in_table
from ssl_medseg.datasets.resolve import Resolved, resolve
from ssl_medseg.datasets.splits import Split, read_split
from ssl_medseg.io.label_map import LabelMap, read_label_map
from ssl_medseg.io.segments import segment_names
from ssl_medseg.io.tables import read_table, whole_number


def with_frames(listing: Listing, file: Path) -> Listing:
    """Apply the frames and phases of a table to a listing, see :func:`read_frames`; other cases are left unchanged."""
    frames = read_frames(file, [entry.name for entry in listing.entries], owner=listing.name)
    phases = {row["case"]: phase_in_table(row.get("phase", ""), source=file) for row in read_table(file)}
    entries = [
        replace(entry, image=entry.image.at_frame(frames.get(entry.name)), phase=phases.get(entry.name) or entry.phase)
        for entry in listing.entries
    ]
    return replace(listing, entries=entries)


def read_frames(file: Path, names: Sequence[str], *, owner: str) -> dict[str, int]:
    """Read case -> frame from a CSV file with the columns ``case`` and ``frame``.

    Args:
        file: CSV file.
        names: Names of all cases.
        owner: Name of the data set, for errors.

    Raises:
        UserError: The file is not such a table, a case does not exist or is listed twice, or a frame is not a number.
    """
    frames: dict[str, int] = {}
    for row in read_table(file, needed=("case", "frame")):
        name = row["case"]
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            raise UserError(
                f"{file} lists the case {name!r}, which {owner} does not contain"
                + (f"; did you mean {near[0]}?" if near else "; correct or remove the row")
            )
        if name in frames:
            raise UserError(f"{file} lists the case {name} twice; expected one frame per case. Remove a row")
        frames[name] = whole_number(row, "frame", file)
    return frames


def open_dataset(
    source: str | os.PathLike[str],
    *,
    layout: Layout = "auto",
    channels: tuple[str, ...] = (),
    frame: int | None = None,
    frame_table: Path | None = None,
    voxel_size: tuple[float, float, float] | None = None,
    trust_pixdim: bool = False,
    label_map: Path | None = None,
    patient_pattern: str | None = None,
    patients: Path | None = None,
    unlabelled: Path | None = None,
    allow_unlabelled: bool = False,
) -> DataSet:
    """Open a data set without reading its images and labels.

    A case without a label is rejected unless the data set or the caller declares it as unlabelled, so that a typo in a
    file name cannot turn a labelled case into an unlabelled one. The following count as declarations: the lists
    ``unlabeled`` and ``test`` of the Decathlon, ``imagesTs`` of nnU-Net, a folder ``unlabelled``, the values
    ``unlabelled`` or ``test`` in the column split of a CSV file, `unlabelled` and `allow_unlabelled`.

    Args:
        source: Folder of the data set, its dataset.json, or a CSV file.
        layout: Layout of the files. For this and the other options see `DataOptions`.
        channels: Channels to use, by name or number.
        frame: Time point to use.
        frame_table: Table with the time point of each case.
        voxel_size: Voxel size in mm, for files that do not state it.
        trust_pixdim: Use the voxel size of headers whose form codes are 0.
        label_map: File with the meaning of the label values.
        patient_pattern: Regular expression for patients.
        patients: Table of patients.
        unlabelled: List of cases without a label.
        allow_unlabelled: Accept any case without a label.

    Raises:
        UserError: The data set does not exist or has problems, all of which the message lists.
    """
    options = DataOptions(
        layout=layout,
        channels=channels,
        frame=frame,
        frame_table=frame_table,
        voxel_size=voxel_size,
        trust_pixdim=trust_pixdim,
        label_map=label_map,
        patient_pattern=patient_pattern,
        patients=patients,
        unlabelled=unlabelled,
        allow_unlabelled=allow_unlabelled,
    )
    return open_with(source, options)


def open_with(source: str | os.PathLike[str], options: DataOptions) -> DataSet:
    """Open a data set, as `open_dataset`, with options in one object."""
    listing, resolved = list_cases(source, options)
    errors = of_level(resolved.findings, "error")
    if errors:
        _, _, *lines = finding_lines(errors)  # without the heading, which is for several levels
        raise UserError("\n".join([f"{Path(source)}: cannot be used as it is", *lines]))
    labels = label_map_for(listing, options)
    if labels is None:
        if any(case.label is not None for case in resolved.cases):
            raise UserError(
                f"{Path(source)} does not state the meaning of its label values; pass --label-map FILE. `ssl-medseg "
                "check --propose-map FILE` writes a label map with the values found, in which you fill in the names"
            )
        labels = LabelMap(("background",), (0,))
    notes = tuple(map(str, of_level(resolved.findings, "warning")))
    return DataSet(listing.name, listing.root, tuple(resolved.cases), labels, listing.layout, notes)


def open_split(source: str | os.PathLike[str], split: str | Path, options: DataOptions) -> tuple[DataSet, Split]:
    """Open a data set together with a split of it.

    Labels may be missing for the unlabelled and test cases of the split, but not for its labelled and validation cases.

    Raises:
        UserError: See `open_with` and `read_split`.
    """
    dataset = open_with(source, replace(options, allow_unlabelled=True))
    return dataset, read_split(split, dataset)


def list_cases(source: str | os.PathLike[str], options: DataOptions) -> tuple[Listing, Resolved]:
    """List the files of a data set, and resolve them to cases and findings.

    Raises:
        UserError: The data set does not exist.
    """
    listing = apply_channels(list_files(Path(source), options), options)
    if options.frame_table is not None:
        listing = with_frames(listing, options.frame_table)
    return listing, resolve(listing, options)


def label_map_for(listing: Listing, options: DataOptions) -> LabelMap | None:
    """Return the label map of the options, or that of the data set, or the segments that all its labels name.

    None if there is none of these.

    Raises:
        UserError: A label map or a segmentation cannot be read.
    """
    if options.label_map is not None:
        return read_label_map(options.label_map)
    if listing.labels is not None:
        return listing.labels
    labels = [entry.label for entry in listing.entries if entry.label is not None and entry.label.exists()]
    names = segment_names(labels)
    return None if names is None else LabelMap(("background", *names), (0, *names.values()))
