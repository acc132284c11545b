"""List folders of images and labels matched by name, and CSV files with a row per case."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import replace
from pathlib import Path

from contrastive_core.app.checks import Finding, Item
from contrastive_core.errors import UserError
from contrastive_core.text import several
from contrastive_core.training.files import sha256
from contrastive_core.training.names import check_path
from ssl_medseg.datasets.channels import choose_channels, unique_names
from ssl_medseg.datasets.layouts.channel_files import ChannelCase, channel_files
from ssl_medseg.datasets.layouts.listing import Entry, Listing, place
from ssl_medseg.datasets.options import DataOptions
from ssl_medseg.datasets.phases import phase_in_table
from ssl_medseg.io.file_types import DICOM_ENDINGS, images_in, is_dicom, is_image, is_segmentation, is_series, stem
from ssl_medseg.io.label_map import LabelMap, read_label_map
from ssl_medseg.io.mask import PREDICTIONS, has_predictions, masks_of_predict
from ssl_medseg.io.tables import read_table, whole_number
from ssl_medseg.io.volume import join_channels

IMAGES = ("images", "image", "imagesTr")
LABELS = ("labels", "label", "masks", "labelsTr")
UNLABELLED = ("unlabelled", "unlabeled")
_IMAGE_ENDINGS = ("_image", "_img")
_LABELS = ("label", "labels", "seg", "mask", "gt", "segmentation")
_LABEL_ENDINGS = tuple(f"{separator}{word}" for separator in "_-." for word in _LABELS)
_LABEL_WORDS = frozenset((*_LABELS, "dseg", "probseg"))
_RATER = re.compile(r"[_.-](rater|reader|annotator|observer)[_-]?\d+$", re.IGNORECASE)
_PARTS = {
    "": "",
    **dict.fromkeys(("train", "training", "labelled", "labeled"), "training"),
    **dict.fromkeys(("val", "valid", "validation"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
    **dict.fromkeys(UNLABELLED, "unlabelled"),
}
"""Value of the column split -> part of the data set."""
_MAPS = ("labels.json", "labels.csv", "labels.tsv", "dataset.json")


def label_folders(names: Iterable[str], files: Iterable[Path] = ()) -> list[str]:
    """Return the folders that hold labels, among folders of which one holds their images; otherwise none.

    Next to the subjects of BIDS, labels are in ``derivatives``, next to the image of a case of TotalSegmentator in
    ``segmentations``.
    """
    names = list(names)
    lower_names = set(map(str.lower, names))
    if "segmentations" in lower_names and any(map(is_image, files)):
        candidates: tuple[str, ...] = ("segmentations",)
    elif "derivatives" in lower_names and any(name.startswith("sub-") for name in lower_names):
        candidates = ("derivatives",)
    elif lower_names & {*map(str.lower, IMAGES), "imagests", "imagesva", "img", "imgs"}:
        candidates = (*map(str.lower, LABELS), "labelsts", "labelsva")
    else:
        candidates = ()
    return [name for each in candidates for name in names if name.lower() == each]


def folders_of(root: Path, names: Iterable[str]) -> list[Path]:
    """Return the subfolders with some names, in the order of the names; ``Images`` counts as ``images``."""
    folders = sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    return [path for name in names for path in folders if path.name.lower() == name.lower()]


def image_name(label: Path) -> str:
    """Return the name of the image that a label belongs to, without ``_seg`` (see `list_folders`) or ``_rater1``."""
    own = stem(label.with_suffix("")) if label.suffix.lower() in DICOM_ENDINGS and label.is_file() else stem(label)
    return _without(_RATER.sub("", _without(own, _LABEL_ENDINGS)), _LABEL_ENDINGS)


def labels_beside(folder: Path, names: Iterable[str], channels: Iterable[str] = ()) -> set[str]:
    """Return the files of a folder that are labels of another one by their names.

    These are ``CASE_seg`` beside ``CASE``, ``CASE_image`` or ``CASE_t1``, also ``segmentation`` beside ``imaging`` and
    ``segmentation-0`` beside ``volume-0``.

    Args:
        folder: Folder.
        names: Names of its files.
        channels: Names of channels, which may be such words, too.
    """
    images = {name: stem(Path(name)) for name in names if is_image(folder / name)}
    cases = set(images.values())
    words = _LABEL_WORDS - set(map(str.lower, channels))
    others = {own for own in cases if not words & {part.lower() for part in _ends(own)}}
    return {
        name
        for name, own in images.items()
        if ((case := image_name(folder / name)) in cases and case != own)
        or (own not in others and any(_is_label_of(own, other, words) for other in others))
    }


def _ends(name: str) -> tuple[str, str]:
    """Return the first and the last word of a name."""
    parts = re.split(r"[_.-]", name)
    return parts[0], parts[-1]


def _is_label_of(label: str, image: str, words: Set[str]) -> bool:
    first, last = _ends(label)
    if last.lower() not in words:  # segmentation-0 beside volume-0
        return first.lower() in words and image.endswith(label[len(first) :])
    # In BIDS, labels have the subject of their image, and other entities, such as desc-brain.
    case = label.partition("_")[0] if label.startswith("sub-") else label[: -len(last)].rstrip("_.-")
    return not case or (image.startswith(case) and image[len(case) : len(case) + 1] in ("", "_", ".", "-"))


def list_folders(root: Path, options: DataOptions) -> Listing:
    """List files and DICOM series in ``images``, with labels in ``labels``, and those in ``unlabelled`` without labels.

    An image has one file, or one per channel: numbered as in nnU-Net (``CASE_0000``, ``CASE_0001``), or with the names
    in `DataOptions.channels` (``CASE_T2``, ``CASE_ADC``, or ``CASE/T2``, ``CASE/ADC``); its label has the name of the
    case or of the file of the first channel. If the option names DICOM series by their descriptions, a folder with the
    series of a study, or with a folder for each series, is one image.

    A label has the name of its image, with an optional ``_label``, ``_seg``, ``_mask``, ``_gt`` or ``_segmentation`` at
    the end, also after a dot or hyphen; an ``_image`` at the end of the image name is ignored. Labels by several
    raters (``CASE_rater1``, ``CASE_rater2``) are an error, because one must be chosen. Labels may be DICOM
    segmentations, also in a folder of their own. Masks of `predict` are labels once they have been changed. The label
    map is read from labels.json, labels.csv or labels.tsv.
    """
    labels: dict[str, list[Path]] = {}
    own_names = {name for name, _ in _named(root, IMAGES)}  # an image may be called 1_seg, too
    predicted = {path for folder in folders_of(root, LABELS) for path in _unchanged_masks(folder)}
    for path in _label_files(root):
        if path not in predicted:
            labels.setdefault(stem(path) if stem(path) in own_names else image_name(path), []).append(path)
    label_of = {name: paths[0] for name, paths in labels.items()}
    findings = [
        Finding(
            "error", "several_labels", f"{name} has several labels: keep one, or list the cases in a CSV file",
            [Item([path.relative_to(root).as_posix() for path in paths])],
        )
        for name, paths in labels.items()
        if len(paths) > 1
    ]  # fmt: skip
    entries: list[Entry] = []
    unused: list[Path] = []
    images, unlabelled = ([*_named(root, part), *_in_case_folders(root, part)] for part in (IMAGES, UNLABELLED))
    channels = channel_files([name for name, _ in (*images, *unlabelled)], labels, options, source=root.name)
    for part, listed in ((IMAGES, "training"), (UNLABELLED, "unlabelled")):
        is_unlabelled = listed == "unlabelled"
        if channels is None:
            pairs = sorted([*_named(root, part), *_named_studies(root, part, options)], key=lambda pair: pair[1])
            cases = [ChannelCase(_without(name, _IMAGE_ENDINGS), options.image(path), ()) for name, path in pairs]
        else:
            cases, others, duplicates = channels.cases(unlabelled if is_unlabelled else images)
            unused += others
            findings += duplicates
        for case in cases:
            names = [] if is_unlabelled else [case.name, stem(case.image.path)]
            label = next((label_of.pop(name) for name in names if name in label_of), None)
            entries.append(Entry(case.name, case.image, label, listed, is_unlabelled, lacks=case.lacks))
    bare = {entry.name for entry in entries if entry.label is None}
    if left := sorted(path.relative_to(root).as_posix() for path in predicted if image_name(path) in bare):
        title = (
            f"{several(len(left), 'mask')} of `predict` without changes: not used as labels. If they are correct, move "
            "them to another folder"
        )
        findings.append(Finding("warning", "predicted_masks", title, [Item(left)]))
    others = [file for folder in folders_of(root, LABELS) if (file := folder / PREDICTIONS).is_file()]
    findings += [
        Finding("note", "other_predictions", f"{file.relative_to(root)} was not written by `predict`: not used")
        for file in others
        if not has_predictions(file.parent)
    ]
    return Listing(
        root.resolve().name,
        root,
        "folders",
        entries,
        own_label_map(root),
        labels_without_image=list(label_of.values()),
        channels=[] if channels is None else channels.names,
        findings=findings,
        set_aside=[*unused, *(path for paths in labels.values() for path in paths[1:])],
    )


def own_label_map(root: Path) -> LabelMap | None:
    """Read the label map of a folder: labels.json, labels.csv, labels.tsv or dataset.json; None if there is none.

    Raises:
        UserError: The file cannot be read.
    """
    return next((read_label_map(root / name) for name in _MAPS if (root / name).is_file()), None)


def _unchanged_masks(folder: Path) -> set[Path]:
    """Return the masks in a folder that `predict` wrote and nobody has changed since, by its predictions.json.

    Raises:
        UserError: The file is damaged.
    """
    written = {folder / name: digest for name, digest in masks_of_predict(folder).items()}
    return {path for path, digest in written.items() if path.is_file() and digest in (None, sha256(path))}


def _label_files(root: Path) -> Iterator[Path]:
    """List the labels: image files, DICOM segmentations, and folders that contain one."""
    for folder in folders_of(root, LABELS):
        yield from images_in(folder)
        if is_series(folder):
            yield from (path for path in sorted(folder.iterdir()) if path.is_file() and is_dicom(path))


def _all(root: Path, folders: Iterable[str]) -> list[Path]:
    return [path for folder in folders_of(root, folders) for path in images_in(folder)]


def _named(root: Path, folders: Iterable[str]) -> list[tuple[str, Path]]:
    """List the images in folders, with their names without extension."""
    return [(stem(path), path) for path in _all(root, folders) if not is_segmentation(path)]


def _in_case_folders(root: Path, folders: Iterable[str]) -> list[tuple[str, Path]]:
    """List the images in folders of cases, with their names: folder and file, without extension."""
    return [
        (f"{stem(folder)}/{stem(path)}", path)
        for folder in _subfolders(root, folders)
        if not is_series(folder)
        for path in images_in(folder, series=False)
    ]


def _named_studies(root: Path, folders: Iterable[str], options: DataOptions) -> list[tuple[str, Path]]:
    """List folders with a subfolder per series of a DICOM study, for the selection of channels."""
    if not options.channels:
        return []
    return [
        (stem(path), path)
        for path in _subfolders(root, folders)
        if not is_series(path) and any(map(is_series, sorted(path.iterdir())))
    ]


def _subfolders(root: Path, folders: Iterable[str]) -> list[Path]:
    return [path for folder in folders_of(root, folders) for path in sorted(folder.iterdir()) if path.is_dir()]


def _without(name: str, endings: Iterable[str]) -> str:
    return next((name[: -len(ending)] for ending in endings if name.lower().endswith(ending)), name)


def list_table(file: Path, options: DataOptions) -> Listing:
    """List the rows of a CSV or TSV file.

    The column ``image`` is required; ``case``, ``patient``, ``label``, ``split``, ``channel``, ``frame`` and
    ``phase`` (ED or ES) are optional. Multi-channel images have one column per channel, such as ``image_T2`` and
    ``image_ADC``.

    Paths are absolute or relative to the file. Without the column case, cases are named after their image files. An
    empty label requires ``unlabelled`` or ``test`` in the column split (``train`` and ``validation`` are the other
    parts), or the option `allow_unlabelled`. The label map is read from labels.json, labels.csv or labels.tsv in the
    same folder.

    Raises:
        UserError: The file is not such a table.
    """
    rows = read_table(file, named_by="image_")
    _check_columns(list(rows[0]) if rows else [], file)
    for row in rows:
        for column in row:
            if column == "label" or column.startswith("image"):
                check_path(row[column] or "", what=column, source=file)
    columns = [name for name in rows[0] if name == "image" or name.startswith("image_")] if rows else ["image"]
    if not columns:
        raise UserError(f"{file}: found the columns {', '.join(rows[0])}, expected image, or one column per channel")
    if len(columns) == 1:
        entries = [_entry(row, file, options, columns) for row in rows]
        name = columns[0].removeprefix("image").removeprefix("_")
        return Listing(
            file.stem, file.parent, "csv", entries, own_label_map(file.parent), channels=[name] if name else []
        )
    names = unique_names([column.removeprefix("image_") for column in columns], source=file)
    channels = choose_channels(dict(enumerate(names)), options.channels, named=True, source=file.name)
    of_channel = {columns[number]: name for number, name in channels.items()}
    entries = [_of_several(row, file, options, of_channel) for row in rows]
    return Listing(
        file.stem, file.parent, "csv", entries, own_label_map(file.parent), channels=list(of_channel.values()),
        set_aside=[place(file.parent, row[c]) for row in rows for c in columns if row[c] and c not in of_channel],
    )  # fmt: skip


_COLUMNS = {
    "label": ("labels", "mask", "masks", "seg", "segmentation", "gt", "ground_truth", "annotation"),
    "patient": ("patient_id", "patientid", "patient_name", "subject", "subject_id", "participant_id"),
    "split": ("set", "subset", "partition", "part"),
}
"""Column -> names that other programs give it. If it were left out, labels or patients would silently be lost."""
_FILE_WORDS = ("path", "file", "filename", "filepath", "file_path", "file_name", "name", "id", "url")


def _check_columns(columns: Sequence[str], file: Path) -> None:
    """Refuse columns that seem to mean a column of another name.

    Raises:
        UserError: There are such columns.
    """
    corrections = {name: "image" for name in columns if name.lower() in {f"image_{word}" for word in _FILE_WORDS}}
    for column, others in _COLUMNS.items():
        synonyms = {*others, *(f"{name}_{word}" for name in (column, *others) for word in _FILE_WORDS)}
        corrections |= {name: column for name in columns if column not in columns and name in synonyms}
    if corrections:
        renames = " and ".join(f"{name} to {column}" for name, column in corrections.items() if column not in columns)
        clashes = ", ".join(name for name, column in corrections.items() if column in columns)
        raise UserError(
            f"{file}: found the columns {', '.join(columns)}; expected image (image_T2 and image_ADC for the channels "
            "T2 and ADC), and if there are any, label, case, patient, split, channel, frame and phase. Rename "
            + " and ".join(filter(None, (renames, f"{clashes} to something else" if clashes else "")))
        )


def _of_several(row: dict[str, str], file: Path, options: DataOptions, of_channel: dict[str, str]) -> Entry:
    """Create the entry of a row with a column per channel; an empty cell means that the channel is missing."""
    if row.get("channel"):
        raise UserError(f"{file} has both a column channel and several image columns; expected only one of the two")
    columns = [column for column in of_channel if row[column]]
    entry = _entry(row, file, options, columns or list(of_channel))
    frame = entry.image.frame
    images = [options.image(place(file.parent, row[c]), name=of_channel[c]).at_frame(frame) for c in columns]
    return replace(
        entry, image=join_channels(images), lacks=tuple(n for c, n in of_channel.items() if c not in columns)
    )


def _entry(row: dict[str, str], file: Path, options: DataOptions, columns: Sequence[str]) -> Entry:
    path = place(file.parent, row[columns[0]])
    if not row[columns[0]]:
        raise UserError(f"{file}: found a row without an image ({row}); expected a path in every row. Remove the row")
    name = row.get("case") or stem(path)
    image = options.image(
        path,
        channel=whole_number(row, "channel", file) if row.get("channel") else None,
        frame=whole_number(row, "frame", file) if row.get("frame") else None,
    )
    listed = _PARTS.get(row.get("split", "").lower())
    if listed is None:  # otherwise a test case of an unknown name would be used for training
        raise UserError(
            f"{file}: found {row['split']!r} in the column split ({name}); expected {', '.join(filter(None, _PARTS))} "
            "or nothing. Rename the part, or the column if it means something else"
        )
    label = place(file.parent, row["label"]) if row.get("label") else None
    phase = phase_in_table(row.get("phase", ""), source=file)
    is_unlabelled = listed in ("unlabelled", "test")
    return Entry(name, image, label, listed, is_unlabelled, row.get("patient") or None, phase=phase)
