"""Open a data set: list its files, resolve cases and patients, refuse contradictions."""

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
from ssl_medseg.datasets.resolve import Resolved, resolve
from ssl_medseg.datasets.splits import Split, read_split
from ssl_medseg.io.label_map import LabelMap, read_label_map
from ssl_medseg.io.tables import read_table, whole_number


def with_frames(listing: Listing, file: Path) -> Listing:
    """The listing with the frames of a table, see :func:`read_frames`; other cases stay."""
    frames = read_frames(file, [entry.name for entry in listing.entries], owner=listing.name)
    entries = [replace(entry, image=entry.image.at_frame(frames.get(entry.name))) for entry in listing.entries]
    return replace(listing, entries=entries)


def read_frames(file: Path, names: Sequence[str], *, owner: str) -> dict[str, int]:
    """Case -> frame, of a CSV file that has the columns ``case`` and ``frame``.

    Args:
        file: the table.
        names: all cases that there are.
        owner: what has them, for errors.

    Raises:
        UserError: no such table, a case that is not there or is there twice, a frame that is no number.
    """
    frames: dict[str, int] = {}
    for row in read_table(file, needed=("case", "frame")):
        name = row["case"]
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            raise UserError(
                f"{file}: names the case {name!r}, which {owner} does not have"
                + (f"; did you mean {near[0]}?" if near else "; correct or remove the row")
            )
        if name in frames:
            raise UserError(f"{file}: names the case {name} twice, expected one frame of each case; remove a row")
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
    """Open a data set; no image and no label is read.

    A case without a label is refused unless the data set or the caller says that it has none: the Decathlon lists
    ``unlabeled`` and ``test``, nnU-Net's ``imagesTs``, a folder ``unlabelled``, ``unlabelled`` or ``test`` in a CSV
    file's column split, `unlabelled` or `allow_unlabelled`. So no typo in a file name makes a labelled case unlabelled.

    Args:
        source: the data set's folder, its dataset.json, or a CSV file.
        layout: as are the others below: see `DataOptions`.
        channels: which channels, by name or number.
        frame: which time point.
        frame_table: table of the time point of each case.
        voxel_size: sides of a voxel in mm, for files that do not state them.
        trust_pixdim: take them from headers whose form codes are 0.
        label_map: file with the meaning of the label values.
        patient_pattern: regular expression for patients.
        patients: table of patients.
        unlabelled: list of cases without a label.
        allow_unlabelled: any case may be without a label.

    Raises:
        UserError: there is no such data set, or something is wrong with it: all of it, in one message.
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
    """`open_dataset` with its options in one object, as the commands have them."""
    listing, resolved = list_cases(source, options)
    errors = of_level(resolved.findings, "error")
    if errors:
        _, _, *lines = finding_lines(errors)  # the heading is for several levels
        raise UserError("\n".join([f"{Path(source)}: cannot be used as it is", *lines]))
    labels = label_map_for(listing, options)
    if labels is None:
        if any(case.label is not None for case in resolved.cases):
            raise UserError(
                f"{Path(source)}: does not say what the values of its labels mean; give --label-map FILE. "
                "`ssl-medseg check --propose-map FILE` writes one from the values that it finds, for you to name"
            )
        labels = LabelMap(("background",), (0,))
    notes = tuple(map(str, of_level(resolved.findings, "warning")))
    return DataSet(listing.name, listing.root, tuple(resolved.cases), labels, listing.layout, notes)


def open_split(source: str | os.PathLike[str], split: str | Path, options: DataOptions) -> tuple[DataSet, Split]:
    """A data set with a split of it.

    The split says which cases are unlabelled and for test, so that labels may be missing there; those of labelled and
    validation cases may not.

    Raises:
        UserError: as `open_with` and `read_split`.
    """
    dataset = open_with(source, replace(options, allow_unlabelled=True))
    return dataset, read_split(split, dataset)


def list_cases(source: str | os.PathLike[str], options: DataOptions) -> tuple[Listing, Resolved]:
    """List the files of a data set, and resolve them to cases and findings.

    Raises:
        UserError: there is no such data set.
    """
    listing = apply_channels(list_files(Path(source), options), options)
    if options.frame_table is not None:
        listing = with_frames(listing, options.frame_table)
    return listing, resolve(listing, options)


def label_map_for(listing: Listing, options: DataOptions) -> LabelMap | None:
    """The label map given by the options, else that of the data set; None if there is neither."""
    return listing.labels if options.label_map is None else read_label_map(options.label_map)
