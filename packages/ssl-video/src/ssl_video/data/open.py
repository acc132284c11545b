"""Where labelled videos lie: folders of classes, CSV lists, Kinetics' lists."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from contrastive_core.errors import UserError
from ssl_video.data.video_set import SUFFIXES, Video, VideoSet

_SPLITS = ("train", "val", "valid", "validation", "test")
_UCF_GROUP = re.compile(r"_(g\d+)_c\d+")


def open_videos(data: str | Path, *, split: str | None = None) -> VideoSet:
    """Find the videos of a data set; no file is opened.

    ====================================  ===================================================================
    a folder                              ``<class>/*`` (UCF-101, HMDB-51, Kinetics), or ``train/<class>/*`` and
                                          ``val`` or ``test`` beside it; the class is the folder's name
    a CSV file with the column path       paths relative to the file; ``class`` or ``label``, ``split`` and ``group``
                                          if there are such columns
    Kinetics' CSV (youtube_id, ...)       videos ``<class>/<id>_000010_000020.mp4`` or ``<id>_000010_000020.mp4``
                                          below the file's folder; those that are not there are left out
    a text file, ``path label`` a line    as SlowFast and PyTorchVideo take them; paths relative to the file
    ====================================  ===================================================================

    Groups that a split must not part are read from a column, or from names such as UCF-101's ``v_Diving_g03_c02``.

    Args:
        data: the folder or file.
        split: only this part of it; None: all of it.

    Raises:
        UserError: nothing there, no videos, a list that cannot be read, or no such split.
    """
    place = Path(data).expanduser()
    if place.is_dir():
        videos = list(_in_folder(place, split))
    elif not place.is_file():
        raise UserError(f"{place}: no such file or folder; expected a folder of videos or a list of them")
    elif place.suffix.lower() == ".csv":
        videos = list(_in_csv(place, split))
    else:
        if split is not None:
            raise UserError(f"{place}: a list of lines `path label` has no splits; got split {split!r}")
        videos = list(_in_lines(place))
    if not videos and split is not None:
        raise UserError(f"{place}: found no videos of split {split!r}")
    return VideoSet(str(data), videos)


def group_of(key: str) -> str | None:
    """The group in the name of a UCF-101 clip: ``Diving/g03`` of ``Diving/v_Diving_g03_c02.avi``; None of others."""
    found = _UCF_GROUP.search(Path(key).name)
    return f"{Path(key).parent.name}/{found[1]}" if found else None


def _in_folder(root: Path, split: str | None) -> Iterator[Video]:
    parts = [entry.name for entry in sorted(root.iterdir()) if entry.is_dir()]
    has_splits = bool(parts) and set(parts) <= set(_SPLITS)
    if split is not None and not has_splits:
        raise UserError(f"{root}: its folders are classes, not splits; got split {split!r}, expected none")
    if split is not None and split not in parts:
        raise UserError(f"{root}: found the splits {', '.join(parts)}; got {split!r}")
    for path in sorted(root.rglob("*")):
        key = path.relative_to(root).as_posix()
        below = key.split("/")
        if path.suffix.lower() not in SUFFIXES or not path.is_file() or any(part.startswith(".") for part in below):
            continue
        if split is not None and below[0] != split:
            continue
        classes = below[1:-1] if has_splits else below[:-1]
        yield Video(key, path, classes[0] if classes else None, group_of(key))


def _in_csv(file: Path, split: str | None) -> Iterator[Video]:
    rows = _rows(file)
    columns = set(rows[0]) if rows else set()
    if {"youtube_id", "time_start", "time_end"} <= columns:
        yield from _in_kinetics(file, rows, split)
        return
    if "path" not in columns:
        raise UserError(
            f"{file}: found the columns {', '.join(sorted(columns)) or 'of no rows'}; expected `path`, and `class` or "
            "`label` if there are labels"
        )
    label = "class" if "class" in columns else "label"
    for row in rows:
        if split is None or row.get("split") == split:
            path = Path(row["path"])
            key = path.as_posix()
            yield Video(key, file.parent / path, row.get(label) or None, row.get("group") or group_of(key))


def _in_kinetics(file: Path, rows: list[Mapping[str, str]], split: str | None) -> Iterator[Video]:
    for row in rows:
        if split is not None and row.get("split") != split:
            continue
        name = f"{row['youtube_id']}_{int(float(row['time_start'])):06d}_{int(float(row['time_end'])):06d}"
        label = row.get("label") or None
        for folder in (label, (label or "").replace(" ", "_"), row.get("split"), ""):
            found = [file.parent / (folder or "") / f"{name}{end}" for end in (".mp4", ".mkv", ".webm")]
            path = next((path for path in found if path.is_file()), None)
            if path is not None:
                yield Video(path.relative_to(file.parent).as_posix(), path, label, row["youtube_id"])
                break


def _in_lines(file: Path) -> Iterator[Video]:
    for number, line in enumerate(_text(file).splitlines(), start=1):
        if line.strip():
            name, _, label = line.strip().rpartition(" ")
            if not name:
                raise UserError(f"{file}, line {number}: found {line.strip()!r}; expected `path label`")
            yield Video(Path(name).as_posix(), file.parent / name, label, group_of(name))


def _rows(file: Path) -> list[Mapping[str, str]]:
    rows = list(csv.DictReader(_text(file).splitlines()))
    for number, row in enumerate(rows, start=2):
        if None in row or None in row.values():
            raise UserError(f"{file}, line {number}: another number of columns than in the first line")
    return list(rows)


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read as text ({error})") from error
