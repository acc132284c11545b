"""Open a data set of videos: folders of classes, CSV files, and the lists of SlowFast, VideoMAE and Kinetics."""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from contrastive_core.app.checks import most_first
from contrastive_core.errors import UserError
from contrastive_core.text import several
from contrastive_core.training.documents import reading
from ssl_video.data.videos import PARTS, SUFFIXES, Video, VideoSet

_UCF_GROUP = re.compile(r"_(g\d+)_c\d+")
_COLUMNS = {
    "path": ("path", "file", "filename", "video", "video_path"),
    "class": ("class", "label", "category", "action"),
    "split": ("split", "part", "subset"),
    "group": ("group",),
}
_KINETICS = {"youtube_id", "time_start", "time_end"}
_UNLABELLED = ("", "-1", "unlabelled", "unlabeled")
_ENDING = "|".join(map(re.escape, sorted(SUFFIXES)))
_LINE = re.compile(rf"(?P<path>.+(?:{_ENDING})\"?)(?:[\s,;]+(?P<label>.*\S))?\s*", re.IGNORECASE)


def open_videos(data: str | Path, *, part: str | None = None) -> VideoSet:
    """Find the videos of a data set without opening any of them.

    ====================================  ===================================================================
    a folder                              ``<class>/*`` (UCF-101, HMDB-51, Kinetics), or ``train/<class>/*`` and
                                          ``val`` or ``test`` beside it; the class is the name of the folder. Videos
                                          beside the class folders, or in a folder ``unlabelled``, have no class
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
    place = Path(data).expanduser()
    notes: list[str] = []
    if place.is_dir():
        videos = _in_folder(place, notes)
    elif not place.is_file():
        raise UserError(f"{place}: no such file or folder; expected a folder of videos, a list of them, or a video")
    elif place.suffix.lower() in SUFFIXES:
        videos = [Video(place.name, place, None, group_of(place.name))]
    else:
        videos = list(_in_list(place, notes))
    if part is not None:
        there = most_first(Counter(video.part for video in videos if video.part is not None))
        wanted = PARTS.get(part.lower(), part)
        if wanted not in there:
            found = f"the parts {', '.join(there)}" if there else "classes and no parts such as train and test"
            raise UserError(f"{place}: found {found}; expected one of them, not part {part!r}")
        videos = [video for video in videos if video.part == wanted]
    return VideoSet(str(data), videos, notes=notes)


def group_of(key: str) -> str | None:
    """Return the group in the name of a UCF-101 clip, or None: ``Diving/g03`` for ``Diving/v_Diving_g03_c02.avi``."""
    found = _UCF_GROUP.search(Path(key).name)
    return f"{Path(key).parent.name}/{found[1]}" if found else None


def read_text(file: Path) -> str:
    """Read a list as text (UTF-8, or UTF-16 with a byte order mark); lines end in a line feed.

    Raises:
        UserError: It cannot be read as text.
    """
    with reading(file, "cannot be read as text", "expected UTF-8"):
        content = file.read_bytes()
        is_utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        text = content.decode("utf-16" if is_utf16 else "utf-8-sig")
    if "\0" in text:
        raise UserError(f"{file}: is not a text file; expected a list of videos")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _in_folder(root: Path, notes: list[str]) -> list[Video]:
    files, endings = [], Counter[str]()
    for path in _walk(root, (root.resolve(),)):
        if path.suffix.lower() in SUFFIXES:
            files.append(path.relative_to(root))
        else:
            endings[path.suffix.lower() or "no suffix"] += 1
    if endings:
        told = ", ".join(f"{ending} {count}" for ending, count in most_first(endings).items())
        notes.append(f"{several(sum(endings.values()), 'file')} with other suffixes left out: {told}")
    with_videos = {file.parts[0] for file in files if len(file.parts) > 1}
    parts = {name for name in with_videos if name.lower() in PARTS}
    hold_classes = any(len(file.parts) > 2 for file in files if file.parts[0] in parts)
    has_parts = bool(parts) and (parts == with_videos or (len(parts) > 1 and hold_classes))
    videos = []
    for file in files:
        key, folders, part = file.as_posix(), file.parts[:-1], None
        if has_parts:
            part = PARTS[folders[0].lower()] if folders and folders[0] in parts else None
            folders = folders[1:] if part else ()
        label = folders[0] if folders and folders[0].lower() not in _UNLABELLED else None
        videos.append(Video(key, root / file, label, group_of(key), part))
    beside = sum(video.part is None for video in videos)
    if has_parts and beside:
        notes.append(f"{several(beside, 'video')} beside the folders {', '.join(sorted(parts))} used as unlabelled")
    return videos


def _walk(folder: Path, above: tuple[Path, ...]) -> Iterator[Path]:
    """Yield the files below a folder, sorted by name; links are followed, but not in circles.

    An empty folder with the name of a video and a broken link are yielded as files, so that opening them reports the
    user's mistake.
    """
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise UserError(f"{folder}: cannot be listed ({error.strerror})") from error
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if not entry.is_dir() or (entry.suffix.lower() in SUFFIXES and not any(entry.iterdir())):
            yield entry
        elif (real := entry.resolve()) not in above:
            yield from _walk(entry, (*above, real))


def _in_list(file: Path, notes: list[str]) -> Iterator[Video]:
    table = read_table(file)
    if table is None:
        for name, label in read_lines(file):
            yield Video(Path(name).as_posix(), file.parent / name, _label(label), group_of(name))
    elif table and set(table[0]) >= _KINETICS:
        yield from _in_kinetics(file, table, notes)
    else:
        yield from _in_table(file, table)


def read_lines(file: Path) -> list[tuple[str, str | None]]:
    """Read a list with a video and its label per line, separated by spaces, a tab, a comma or a semicolon.

    Raises:
        UserError: It cannot be read as text, or a line names no video.
    """
    entries = []
    for number, line in enumerate(read_text(file).split("\n"), start=1):
        if not line.strip():
            continue
        found = _LINE.fullmatch(line.strip())
        if not found:
            raise UserError(
                f"{file}, line {number}: found {line.strip()[:80]!r}; expected a video and its label, for example "
                "`diving/1.mp4 diving`; or a header with the column `path`"
            )
        label = found["label"]
        entries.append((found["path"].strip('"'), None if label is None else label.strip('"')))
    return entries


def read_table(file: Path) -> list[dict[str, str]] | None:
    """Read the rows of a CSV file, by our column names ``path``, ``class``, ``split``, ``group`` and by the file's own.

    Columns are separated by commas, semicolons or tabs; their names may be in upper case.

    Returns:
        The rows; None if the header has neither a column for paths nor those of Kinetics.

    Raises:
        UserError: It cannot be read as text, or a line has another number of columns than the first.
    """
    with reading(file, "cannot be read as CSV", "export it again"):
        return _read_table(file)


def _read_table(file: Path) -> list[dict[str, str]] | None:
    text = read_text(file)
    first = text.partition("\n")[0]
    for delimiter in (",", ";", "\t"):
        names = [name.strip().lower() for name in next(csv.reader([first], delimiter=delimiter), [])]
        if set(names) >= _KINETICS or set(names) & set(_COLUMNS["path"]):
            break
    else:
        return None
    wanted: Mapping[str, Sequence[str]] = _COLUMNS
    if set(names) >= _KINETICS:
        wanted = {"class": ("label",), "split": ("split",)}
    ours: dict[str, str] = {}
    for name, others in wanted.items():
        ours |= dict.fromkeys([other for other in others if other in names][:1], name)
    rows = []
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    next(reader)
    for row in reader:
        if not any(cell.strip() for cell in row):
            continue
        if len(row) != len(names):
            raise UserError(
                f"{file}, line {reader.line_num}: found {len(row)} columns; expected {len(names)}, as in the first line"
            )
        rows.append({ours.get(name, name): cell.strip() for name, cell in zip(names, row, strict=True)})
    return rows


def _in_table(file: Path, rows: Sequence[Mapping[str, str]]) -> Iterator[Video]:
    for row in rows:
        path, part = Path(row["path"]), row.get("split") or None
        yield Video(
            path.as_posix(),
            file.parent / path,
            _label(row.get("class")),
            row.get("group") or group_of(path.as_posix()),
            None if part is None else PARTS.get(part.lower(), part),
        )


def _in_kinetics(file: Path, rows: Sequence[Mapping[str, str]], notes: list[str]) -> Iterator[Video]:
    root, there = file.parent, _by_name(file.parent)
    if not there:  # lists in a folder `annotations` beside the videos
        root, there = root.parent, _by_name(root.parent)
    gone = 0
    for row in rows:
        part, label = row.get("split", ""), row.get("class", "")
        found = there.get(kinetics_name(row) or "", [])
        if not found:
            gone += 1
            continue
        # The same clip may lie in several folders.
        near = {label, label.replace(" ", "_"), part, PARTS.get(part.lower(), part)}
        path = max(found, key=lambda path: len(near & set(path.relative_to(root).parts)))
        key = path.relative_to(root).as_posix()
        yield Video(key, path, _label(label), row["youtube_id"], PARTS.get(part.lower()))
    if gone:
        notes.append(f"{gone} of the {several(len(rows), 'video')} in the list are missing")


def _by_name(root: Path) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for path in _walk(root, (root.resolve(),)):
        if path.suffix.lower() in SUFFIXES:
            found.setdefault(path.stem, []).append(path)
    return found


def kinetics_name(row: Mapping[str, str]) -> str | None:
    """Return the file name of a row of Kinetics' lists, without its suffix; None for a row without times."""
    try:
        return f"{row['youtube_id']}_{int(float(row['time_start'])):06d}_{int(float(row['time_end'])):06d}"
    except (KeyError, TypeError, ValueError, OverflowError):
        return None


def _label(text: str | None) -> str | None:
    return None if text is None or text.lower() in _UNLABELLED else text
