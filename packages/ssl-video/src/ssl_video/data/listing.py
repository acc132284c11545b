"""Open a data set of videos: folders of classes, CSV files, and the lists of SlowFast, VideoMAE and Kinetics."""

from __future__ import annotations

import csv
import dataclasses
import io
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from contrastive_core.app.checks import most_first
from contrastive_core.errors import UserError
from contrastive_core.text import several, some_of
from contrastive_core.training.documents import read_text, reading
from contrastive_core.training.files import is_hidden
from contrastive_core.training.split_names import find_splits
from contrastive_core.training.tables import (
    check_local,
    column_names,
    find_columns,
    is_address,
    is_missing,
    joined_names,
    local_path,
    plain_cell,
    similar_names,
    stated_separator,
    whole_numbers,
    with_row_numbers,
)
from ssl_video.data.videos import SUFFIXES, Video, VideoSet, canonical_part

_UCF_GROUP = re.compile(r"_(g\d+)_c\d+")
_COLUMNS = {
    "path": (
        "path",
        "file",
        "filename",
        "video",
        "video_path",
        "file_path",
        "filepath",
        "file_name",
        "clip_path",
        "video_name",
        "video_file",
    ),
    "class": ("class", "label", "category", "action", "class_name", "label_name", "tag"),
    "split": ("split", "part", "subset"),
    "group": ("group",),
}
_MOMENTS = {f"{edge}{unit}" for edge in ("start", "end") for unit in ("", "_time", "_frame", "_sec", "_seconds")}
"""Columns of lists of segments, which are not cut out of their videos."""
_PARTS_ELSEWHERE = {"set", "partition", "phase", "fold", "is_train", "is_training", "is_val", "is_valid", "is_test"}
_KINETICS = {"youtube_id", "time_start", "time_end"}
_ARCHIVES = frozenset({".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar"})
_PICTURES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})
_NO_PICTURES = (
    "extracted frames are not read. Give the videos they were taken from, or join the frames of each video to one, for "
    "example with `ffmpeg -framerate 25 -i img_%05d.jpg video.mp4`"
)
_UNLABELLED = ("-1", "unlabelled", "unlabeled")
_EXPECTED = "a list of videos"
_SEPARATORS = dict.fromkeys((0x85, 0x2028, 0x2029), "\n")  # line ends of other programs and languages
_ENDING = "|".join(map(re.escape, sorted(SUFFIXES)))
_NUMBERS = re.compile(r"-?\d+(?:\.\d+)?(?:[\s,;]+-?\d+(?:\.\d+)?)+")
_COLUMN = re.compile(r"-?\d+(\.\d*)?\s*[,;\t]")
_MARK = re.compile(r"[,;\t]")
_HMDB = re.compile(r"_test_split\d$")
_LINE = re.compile(rf"(?P<path>.+(?:{_ENDING})\"?)(?:(?P<space>[\s,;]+)(?P<label>.*\S))?\s*", re.IGNORECASE)


def open_videos(data: str | Path, *, part: str | None = None) -> VideoSet:
    """Find the videos of a data set without opening any of them.

    ====================================  ===================================================================
    a folder                              ``<class>/*`` (UCF-101, HMDB-51, Kinetics), or ``train/<class>/*`` and
                                          ``val`` or ``test`` beside it; the class is the name of the folder. Videos
                                          beside the class folders, or in a folder ``unlabelled``, have no class.
                                          Folders that hold nothing but these are opened (an unpacked archive)
    a CSV file with the column path       paths relative to the file; the columns ``class`` or ``label``, ``split`` and
                                          ``group`` are optional; an empty class means unlabelled
    Kinetics' CSV (youtube_id, ...)       videos ``<class>/<id>_000010_000020.mp4`` or ``<id>_000010_000020.mp4``
                                          below the folder of the file or its parent; missing videos are left out
    a list of lines ``path label``        as SlowFast, VideoMAE and PyTorchVideo read it, with or without the suffix
                                          .csv; paths relative to the file
    one video file                        a single video, without a class
    ====================================  ===================================================================

    Links are followed; hidden files are skipped. Groups, which a split keeps together, are read from a column or from
    names such as UCF-101's ``v_Diving_g03_c02``. `VideoSet.notes` names what was left out.

    Args:
        data: Folder or file.
        part: Part of the data, ``train``, ``validation`` or ``test``; None: all of it.

    Raises:
        UserError: The path does not exist, holds no videos or no such part, or is a list that cannot be read.
    """
    if is_address(str(data)):
        raise UserError(f"{data}: found an address, expected a path on this computer; download the videos first")
    place = Path(data).expanduser()
    notes: list[str] = []
    if place.is_dir():
        videos = _in_folder(place, notes)
    elif not place.is_file():
        raise UserError(f"{place}: no such file or folder; expected a folder of videos, a list of them, or a video")
    elif place.suffix.lower() in SUFFIXES:
        videos = [Video(place.name, place, None, group_of(place.name))]
    elif place.suffix.lower() in _ARCHIVES:
        raise UserError(f"{place}: found an archive, expected a folder or a list of videos; unpack it first")
    elif place.suffix.lower() in _PICTURES:
        raise UserError(f"{place}: found a picture, expected videos; {_NO_PICTURES}")
    else:
        videos = _locate(place, list(_in_list(place, notes)), notes)
    labels = {video.label for video in videos if video.label is not None}
    notes += [*joined_names(labels), *similar_names(labels)]
    if part is not None:
        there = most_first(Counter(video.part for video in videos if video.part is not None))
        part_name = canonical_part(part)
        if part_name not in there:
            contents = f"the parts {', '.join(there)}" if there else "classes and no parts such as train and test"
            raise UserError(f"{place}: found {contents}; expected one of them, not part {part!r}")
        videos = [video for video in videos if video.part == part_name]
    return VideoSet(str(data), videos, notes=notes)


def group_of(key: str) -> str | None:
    """Return the group in the name of a UCF-101 clip, or None: ``Diving/g03`` for ``Diving/v_Diving_g03_c02.avi``."""
    match = _UCF_GROUP.search(Path(key).name)
    return f"{Path(key).parent.name}/{match[1]}" if match else None


def _in_folder(root: Path, notes: list[str]) -> list[Video]:
    files, suffixes = [], Counter[str]()
    for path in _walk(root, (root.resolve(),)):
        if path.suffix.lower() in SUFFIXES:
            files.append(path.relative_to(root))
        else:
            suffixes[path.suffix.lower() or "no suffix"] += 1
    pictures = sum(count for suffix, count in suffixes.items() if suffix in _PICTURES)
    if not files and 2 * pictures > sum(suffixes.values()):
        raise UserError(f"{root}: found {several(pictures, 'picture')} and no videos; {_NO_PICTURES}")
    if suffixes:
        counts = ", ".join(f"{suffix} {count}" for suffix, count in most_first(suffixes).items())
        notes.append(f"{several(sum(suffixes.values()), 'file')} with other suffixes left out: {counts}")
    depth = _wrapper_depth(root, files)
    if depth:
        notes.append(f"the videos are in {'/'.join(files[0].parts[:depth])}, which is opened instead")
    inside = [file.relative_to(*file.parts[:depth]) if depth else file for file in files]
    parts = _folders_of_parts(root, inside, notes)
    videos, other_folders = [], Counter[str]()
    for file, within in zip(files, inside, strict=True):
        key, folders, part = file.as_posix(), within.parts[:-1], None
        if parts and folders:
            part = parts.get(folders[0])
            if part is None and folders[0].lower() not in _UNLABELLED:
                other_folders[folders[0]] += 1
                continue
            folders = folders[1:] if part else ()
        label = _label(folders[0]) if folders else None
        videos.append(Video(key, root / file, label, group_of(key), part))
    if other_folders:
        counts = ", ".join(f"{name} {count}" for name, count in most_first(other_folders).items())
        notes.append(
            f"{several(sum(other_folders.values()), 'video')} in folders beside {', '.join(sorted(parts))} left out: "
            f"{counts}; name a folder unlabelled to train on its videos"
        )
    beside = sum(video.part is None for video in videos)
    if parts and beside:
        notes.append(f"{several(beside, 'video')} beside the folders {', '.join(sorted(parts))} used as unlabelled")
    return videos


def _wrapper_depth(root: Path, files: Sequence[Path]) -> int:
    """Return the number of folders around the parts or classes that hold nothing else, as in an unpacked archive."""
    depth = 0
    while True:
        folders = {file.parts[depth] for file in files if len(file.parts) > depth + 1}
        is_loose = any(len(file.parts) == depth + 1 for file in files)
        if is_loose or not folders:
            return 0  # a single class
        if len(folders) > 1 or find_splits(root, sorted(folders)):
            return depth
        depth += 1


def _folders_of_parts(root: Path, files: Sequence[Path], notes: list[str]) -> dict[str, str]:
    """Return the folders that are parts of the data, each with its part; empty if the folders are classes.

    Raises:
        UserError: There are two folders for one part, or one that could be a part or a class.
    """
    names = sorted({file.parts[0] for file in files if len(file.parts) > 1})
    splits = find_splits(root, names)
    parts = {name: canonical_part(split) for split, name in splits.items()}
    beside = [name for name in names if name not in parts and name.lower() not in _UNLABELLED]
    if len(parts) != 1 or not beside:
        return parts
    (name,) = parts
    if all(len(file.parts) > 2 for file in files if file.parts[0] == name):
        return parts  # it holds classes
    if len(beside) > 1:
        notes.append(f"the folder {name} is used as a class, because it is beside {some_of(beside)}")
        return {}
    raise UserError(
        f"{root}: found the folders {name} and {beside[0]}, which both hold videos; {name} could be a part of the data "
        f"or a class. Rename {name} if it is a class, move {beside[0]} away if {name} is a part, or give a CSV file"
    )


def _walk(folder: Path, above: tuple[Path, ...]) -> Iterator[Path]:
    """Yield the files below a folder, sorted by name; links are followed, except to a parent folder.

    An empty folder with the name of a video and a broken link are yielded as files, so that opening them reports the
    user's mistake.
    """
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise UserError(f"{folder}: cannot be listed ({error.strerror})") from error
    for entry in entries:
        if is_hidden(entry.name):
            continue
        if not entry.is_dir() or (entry.suffix.lower() in SUFFIXES and not any(entry.iterdir())):
            yield entry
        elif (real := entry.resolve()) not in above:
            yield from _walk(entry, (*above, real))


def _in_list(file: Path, notes: list[str]) -> Iterator[Video]:
    table = read_table(file, notes)
    if table is None:
        for name, label in read_lines(file):
            yield Video(Path(name).as_posix(), file.parent / name, _label(label), group_of(name))
    elif table and set(table[0]) >= _KINETICS:
        yield from _in_kinetics(file, table, notes)
    else:
        yield from _in_table(file, table, notes)


def _locate(file: Path, videos: list[Video], notes: list[str]) -> list[Video]:
    """Find the videos of a list of which none lies where it says, relative to the list.

    Other programs take paths as relative to their working directory or to a folder that is given elsewhere.

    Raises:
        UserError: The list is empty.
    """
    if not videos:
        raise UserError(f"{file}: lists no videos; expected a video and its label per line, or a CSV file with rows")
    # Path.exists raises an error for names that are too long; os.path.exists returns False.
    if any(os.path.exists(video.path) for video in videos):  # noqa: PTH110
        return videos
    root = file.parent
    by_name: dict[str, list[Path]] = {}
    for path in _walk(root, (root.resolve(),)):
        by_name.setdefault(path.name, []).append(path)
        if path.suffix.lower() in SUFFIXES:
            by_name.setdefault(path.stem, []).append(path)  # for lists without suffixes
    root_paths = [root / video.key.lstrip("/") for video in videos]
    working_paths = [Path(video.key) for video in videos]
    name_paths = [matches[0] if len(matches := by_name.get(path.name, [])) == 1 else path for path in working_paths]
    for paths, where in (
        (root_paths, f"in {root}, although their paths start with a slash"),
        (working_paths, "relative to the working directory"),
        (name_paths, f"below {root} by their file names, which are unique there"),
    ):
        if any(map(os.path.exists, paths)):
            notes.append(f"the videos of the list were found {where}")
            keys = [video.key.lstrip("/") if paths is root_paths else video.key for video in videos]
            return [
                dataclasses.replace(video, key=key, path=path)
                for video, key, path in zip(videos, keys, paths, strict=True)
            ]
    notes.append(
        f"none of the videos of the list was found relative to {root} or to the working directory, nor by its name "
        f"below {root}; move the list to the folder of the videos"
    )
    return videos


def read_lines(file: Path) -> list[tuple[str, str | None]]:
    """Read a list with a video and its label per line, separated by spaces, a tab, a comma or a semicolon.

    Raises:
        UserError: It cannot be read as text, a line names no video or has several columns, or the labels are the parts
            of HMDB51.
    """
    entries, lines = [], []
    for number, line in enumerate(_text(file).split("\n"), start=1):
        match = _LINE.fullmatch(line.strip())
        if not line.strip() or (not match and line.lstrip().startswith("#")):
            continue
        if not match:
            raise UserError(
                f"{file}, line {number}: found {line.strip()[:80]!r}; expected a video and its label, for example "
                "`diving/1.mp4 diving`; or a header with the column `path`"
            )
        label = match["label"]
        if label is not None and _NUMBERS.fullmatch(label):
            raise UserError(
                f"{file}, line {number}: found the numbers {label} after a video; expected one label. Lists with the "
                "number of frames or with several labels are not read; write `path label`, or a CSV file"
            )
        extras = []
        if label is not None and (mark := _MARK.search(match["space"])):
            label, *extras = next(csv.reader([label], delimiter=mark[0], skipinitialspace=True))
        if any(extras) or (label is not None and _COLUMN.match(label)):
            raise UserError(
                f"{file}, line {number}: found several columns after a video ({match['label'][:80]}), and no header "
                "that names them; expected one label. Add a first line with their names, such as "
                "`path,start,end,class`, or quotes around a label"
            )
        path = local_path(match["path"].strip('"'), file.parent)
        lines.append((number, path))
        entries.append((path, "" if label is None else label.strip('"')))
    check_local(file, lines)
    labels = whole_numbers([label for _, label in entries])
    if _HMDB.search(file.stem) and set(labels) <= {"0", "1", "2"}:
        raise UserError(
            f"{file}: is a list of HMDB51, whose numbers are parts (1 for training, 2 for testing, 0 for neither) and "
            "no classes; expected a video and its class per line. Give the folder of the class folders, or a CSV file "
            "with the columns path, class and split"
        )
    return [(path, label or None) for (path, _), label in zip(entries, labels, strict=True)]


def read_table(file: Path, notes: list[str] | None = None) -> list[dict[str, str]] | None:
    """Read the rows of a CSV file, by our column names ``path``, ``class``, ``split``, ``group`` and by the file's own.

    Columns are separated by commas, semicolons or tabs; their names may be in upper case.

    Args:
        file: The file.
        notes: List to which sentences on ignored columns are added.

    Returns:
        The rows; None if the header has neither a column for paths nor those of Kinetics.

    Raises:
        UserError: It cannot be read as text, a column occurs twice, a row has no path, or a line has another number of
            columns than the first.
    """
    with reading(file, "cannot be read as CSV", "export it again"):
        return _read_table(file, [] if notes is None else notes)


def _read_table(file: Path, notes: list[str]) -> list[dict[str, str]] | None:
    text = _text(file)
    before, text, separator = _without_preamble(text)
    first = text.partition("\n")[0]
    for delimiter in separator or (",", ";", "\t"):
        names = column_names(next(csv.reader([first], delimiter=delimiter, skipinitialspace=True), []))
        if set(names) >= _KINETICS or set(names) & set(_COLUMNS["path"]):
            break
    else:
        return None
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    next(reader)
    lines = [(before + reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    names = with_row_numbers(names, [row for _, row in lines])
    columns: Mapping[str, Sequence[str]] = _COLUMNS
    if set(names) >= _KINETICS:
        columns = {"class": ("label",), "split": ("split",)}
    places, column_notes = find_columns(file, names, columns)
    notes += column_notes
    notes += _unused_columns(names, places)
    ours = {names[place]: name for name, place in places.items()}
    rows, paths = [], []
    for number, row in lines:
        if column_names(row) == names:
            notes.append(f"line {number} repeats the header and is left out")
            continue
        if len(row) != len(names):
            raise UserError(f"{file}, line {number}: found {len(row)} columns; expected {len(names)}, as in the header")
        cells = {ours.get(name, name): cell.strip() for name, cell in zip(names, row, strict=True)}
        if "path" in cells:
            cells["path"] = local_path(cells["path"], file.parent)
            paths.append((number, cells["path"]))
        rows.append(cells)
    pathless = [str(line) for line, path in paths if not path]
    if pathless:
        raise UserError(
            f"{file}: found rows without a path (line {some_of(pathless)}), expected one in each; remove them"
        )
    check_local(file, paths)
    labels = whole_numbers([row.get("class", "") for row in rows])
    return [{**row, "class": label} if "class" in row else row for row, label in zip(rows, labels, strict=True)]


def _unused_columns(names: Sequence[str], places: Mapping[str, int]) -> Iterator[str]:
    """Yield sentences on columns that are not used although they may matter."""
    if not set(places) & {"class", "split"} and len(names) > 1:
        other_names = some_of([name for name in names if name not in _COLUMNS["path"]])
        yield f"no column is used as the class ({other_names} found; expected class or label)"
    moments = [name for name in names if name in _MOMENTS]
    if moments:
        yield f"the columns {some_of(moments)} are not used: the class of a row applies to its whole video"
    elsewhere = [name for name in names if name in _PARTS_ELSEWHERE]
    if elsewhere and "split" not in places:
        yield f"not used as parts: {some_of(elsewhere)}; parts are read from a column named split"


def _without_preamble(text: str) -> tuple[int, str, str]:
    """Remove lines before the header of a table: comments after #, blank lines, and a spreadsheet's ``sep=;``.

    Returns:
        Number of these lines, the rest, and the separator that ``sep=`` states, or an empty string.
    """
    lines, separator = text.split("\n"), ""
    for number, line in enumerate(lines):
        if mark := stated_separator(line):
            separator = mark
        elif line.strip() and (not line.lstrip().startswith("#") or _LINE.fullmatch(line.strip())):
            return number, "\n".join(lines[number:]), separator
    return 0, text, separator


def _text(file: Path) -> str:
    text = read_text(file, expected=_EXPECTED)
    if "\n" not in text.strip():  # otherwise they are part of a name
        text = text.translate(_SEPARATORS)
    if text.lstrip()[:1] in ("{", "["):
        raise UserError(
            f"{file}: found JSON, expected a CSV file or a list with a video and its label per line; "
            "split files are given with --split"
        )
    return text


def _in_table(file: Path, rows: Sequence[Mapping[str, str]], notes: list[str]) -> Iterator[Video]:
    missing_classes = [row["class"] for row in rows if row.get("class") and is_missing(row["class"])]
    if missing_classes:
        notes.append(
            f"{several(len(missing_classes), 'video')} with the class {missing_classes[0]}, a missing value, "
            "used as unlabelled"
        )
    for row in rows:
        path, part = Path(row["path"]), plain_cell(row.get("split") or "") or None
        yield Video(
            path.as_posix(),
            file.parent / path,
            _label(plain_cell(row.get("class") or "")),
            plain_cell(row.get("group") or "") or group_of(path.as_posix()),
            None if part is None else canonical_part(part),
        )


def _in_kinetics(file: Path, rows: Sequence[Mapping[str, str]], notes: list[str]) -> Iterator[Video]:
    root, there = file.parent, _by_name(file.parent)
    if not there:  # lists in a folder `annotations` beside the videos
        root, there = root.parent, _by_name(root.parent)
    missing = 0
    for row in rows:
        part, label = row.get("split", ""), row.get("class", "")
        candidates = there.get(kinetics_name(row) or "", [])
        if not candidates:
            missing += 1
            continue
        # The same clip may lie in several folders.
        near = {label, label.replace(" ", "_"), part, canonical_part(part)}
        path = max(candidates, key=lambda path: len(near & set(path.relative_to(root).parts)))
        key = path.relative_to(root).as_posix()
        yield Video(key, path, _label(label), row["youtube_id"], canonical_part(part) if part else None)
    if rows and missing == len(rows):
        raise UserError(
            f"{file}: found none of the {several(missing, 'video')} in the list below {root}; expected files such as "
            f"{kinetics_name(rows[0]) or rows[0]['youtube_id']}.mp4. Move the list to the folder of the videos"
        )
    if missing:
        notes.append(f"{missing} of the {several(len(rows), 'video')} in the list are missing")


def _by_name(root: Path) -> dict[str, list[Path]]:
    paths: dict[str, list[Path]] = {}
    for path in _walk(root, (root.resolve(),)):
        if path.suffix.lower() in SUFFIXES:
            paths.setdefault(path.stem, []).append(path)
    return paths


def kinetics_name(row: Mapping[str, str]) -> str | None:
    """Return the file name of a row of Kinetics' lists, without its suffix; None for a row without times."""
    try:
        return f"{row['youtube_id']}_{int(float(row['time_start'])):06d}_{int(float(row['time_end'])):06d}"
    except (KeyError, TypeError, ValueError, OverflowError):
        return None


def _label(text: str | None) -> str | None:
    """Return a class in Unicode's composed form (NFC), as file systems may decompose it; None if it is missing."""
    if text is None or is_missing(text) or text.lower() in _UNLABELLED:
        return None
    return unicodedata.normalize("NFC", text)
