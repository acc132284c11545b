"""`ssl-video make-splits`: draw training, labelled, validation and test videos, and write them to split files."""

from __future__ import annotations

import dataclasses
import os
import re
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple
from unicodedata import normalize

import av.logging

from contrastive_core.app.checks import most_first
from contrastive_core.errors import UserError, without_path
from contrastive_core.text import several, some_of
from contrastive_core.training.config import DrawOptions, equal_selections
from contrastive_core.training.progress import track
from ssl_video.data import VideoSet, open_videos
from ssl_video.data.official_lists import read_list
from ssl_video.data.splits import (
    By,
    Groups,
    Labelled,
    Split,
    first_of_each,
    groups_by_class,
    hold_out,
    ranked,
    write_splits,
)
from ssl_video.data.video_index import open_video
from ssl_video.data.videos import PARTS, Video, distinct_contents


@dataclass(frozen=True)
class LabelDrawOptions(DrawOptions):
    """Numbers of videos to label and to hold out, and the draws of the labelled ones.

    Attributes:
        fractions: Fractions of the videos of each class to label.
        per_class: Numbers of videos of each class to label, in files such as ``4each-draw0.json``.
        validation_fraction: Fraction of every class to hold out for choosing settings; 0 for none.
    """

    fractions: tuple[float, ...] = (0.05, 0.1, 0.2)
    validation_fraction: float = 0.1


def make_splits(
    data: str,
    out: Path,
    *,
    draw: LabelDrawOptions = LabelDrawOptions(),
    by: Literal["auto", "clip", "group", "block"] = "auto",
    blocks: int = 10,
    test_fraction: float = 0.2,
    train_list: Path | None = None,
    test_list: Path | None = None,
    labelled_list: Path | None = None,
    overwrite: bool = False,
) -> str:
    """Write split files such as ``10percent-draw0.json``, which `train` and `evaluate` take.

    All files of one call share the test and validation parts; draws differ in the videos that are labelled. Parts that
    the data already state (folders ``val`` and ``test``, a column ``split``) are kept, the others are drawn. Videos
    without a class are used for training without labels, and never for labels, validation or testing. Of the n training
    videos of every class, ``max(1, round(fraction * n))`` are labelled, group by group; a smaller selection is part of
    the larger ones of the same draw. Every file states a hash of its lists; an existing file with other content is an
    error. Every video is opened, but not decoded; those that are empty or cannot be opened are left out and named.

    Args:
        data: Folder of class folders, CSV file with a column path, or list of lines ``path class``.
        out: Folder for the split files. Existing files must have the same content.
        draw: Numbers of videos to label and to hold out, draws, and seed.
        by: Videos to keep together. ``group``: clips of one recording, from names as in UCF-101 or a CSV column.
            ``block``: neighbours in the order of names. ``clip``: none, which leaks if recordings were cut into clips.
            ``auto``: group if all videos have one, else block.
        blocks: Number of blocks into which each class is cut.
        test_fraction: Fraction of every class to hold out for the final test; 0 for none. Ignored with `test_list`.
        train_list: Official list of training videos: UCF-101's ``trainlist01.txt``, HMDB-51's folder of
            ``*_test_split1.txt`` (which also holds the test list), Kinetics' CSV, or a list of names.
        test_list: Official list of test videos.
        labelled_list: List of the labelled videos, instead of drawing them; one file ``listed.json`` is written.
        overwrite: Whether to replace files that this command did not write. Split files with other content are among
            them.

    Returns:
        Summary of the files written.
    """
    _check(draw, blocks=blocks, test=test_fraction)
    seed = draw.seed
    parts = _readable(_parts(open_videos(data), train_list, test_list, labelled_list))
    videos, notes = parts.videos, parts.notes
    if len(videos.classes) < 2:
        raise UserError(
            f"{data}: found {several(len(videos.classes), 'class', 'classes')} "
            f"({', '.join(videos.classes) or 'none'}); expected at least two: folders of classes, or a column `class`"
        )
    labelled = [place for place in parts.train if videos[place].label is not None]
    pool = videos.subset(labelled)
    together = by
    if together == "auto":
        together = "group" if all(video.group is not None for video in pool.videos) else "block"
    classes = groups_by_class(pool, by=together, blocks=blocks)
    list_places = {labelled.index(place) for place in parts.labelled or ()}
    holdout: dict[str, list[int]] = {}
    for purpose, share, preset in (
        ("test", test_fraction, parts.test),
        ("validation", draw.validation_fraction, parts.validation),
    ):
        holdout[purpose] = preset
        if share and not preset and not (purpose == "test" and parts.is_official):
            classes, pool_places = _hold_out_groups(
                classes, share, list_places, by=together, seed=seed, purpose=purpose, notes=notes
            )
            holdout[purpose] = [labelled[place] for place in pool_places]
    copies = _copies(videos, parts, holdout)
    classes = {
        label: {name: [place for place in places if labelled[place] not in copies] for name, places in groups.items()}
        for label, groups in classes.items()
    }
    empty_classes = [label for label, groups in classes.items() if not any(groups.values())]
    if empty_classes:
        raise UserError(
            f"{data}: all training videos of the class {empty_classes[0]} are identical to validation or test videos; "
            "`ssl-video check` lists identical files"
        )
    labelled_train = [labelled[place] for groups in classes.values() for places in groups.values() for place in places]
    unlabelled = [place for place in _apart(videos, parts, holdout, by=together) if place not in copies]
    train = sorted({*labelled_train, *unlabelled})
    settings: dict[str, object] = {"data": data, "by": together, "seed": seed}
    settings |= {"blocks": blocks} if together == "block" else {}
    label_sets: dict[str, tuple[list[int], dict[str, object]]] = {}
    if parts.labelled is not None and labelled_list is not None:
        label_sets["listed"] = sorted(parts.labelled), {"labelled_list": labelled_list.name}
    else:
        for number in range(draw.draws):
            order = ranked(classes, seed=seed + number)
            for fraction in draw.fractions:
                name = f"{100 * fraction:g}percent-draw{number}"
                label_sets[name] = first_of_each(order, fraction=fraction), {"fraction": fraction, "draw": number}
            for count in draw.per_class:
                name = f"{count}each-draw{number}"
                label_sets[name] = first_of_each(order, count=count), {"per_class": count, "draw": number}
        label_sets = {name: ([labelled[place] for place in places], how) for name, (places, how) in label_sets.items()}
    out, lines, splits = Path(out), [], dict[Path, Split]()
    for name, (places, how) in label_sets.items():
        split = Split(
            classes=videos.classes,
            train=tuple(videos[place].key for place in train),
            labelled=_pairs(videos, places),
            validation=_pairs(videos, sorted(holdout["validation"])),
            test=_pairs(videos, sorted(holdout["test"])),
            settings={**settings, **how},
        )
        splits[out / f"{name}.json"] = split
        lines.append(f"{out / f'{name}.json'}: {len(places)} labelled of {len(train)}, sha256 {split.digest[:12]}")
    lists = [file for file in (train_list, test_list, labelled_list) if file is not None]
    inputs: list[Path | str] = [data, *lists, *(video.path for video in videos.videos)]
    write_splits(splits, inputs=inputs, overwrite=overwrite)
    without = f", {len(unlabelled)} of them without a class" if unlabelled else ""
    head = (
        f"{len(train)} training videos{without}, {len(videos.classes)} classes, {len(holdout['validation'])} "
        f"validation videos, {len(holdout['test'])} test videos; kept together by {together}"
    )
    notes += equal_selections({name: places for name, (places, _) in label_sets.items()})
    return "\n".join([head, *(f"note: {note}" for note in notes), *lines])


def _hold_out_groups(
    classes: dict[str, Groups],
    share: float,
    list_places: set[int],
    *,
    by: By,
    seed: int,
    purpose: str,
    notes: list[str],
) -> tuple[dict[str, Groups], list[int]]:
    """Hold out groups of every class that has several, but none with videos that are listed as labelled."""
    free = {
        label: {name: places for name, places in groups.items() if not list_places & set(places)}
        for label, groups in classes.items()
    }
    # The listed videos, which are never held out, leave enough for training.
    candidates = {label: groups for label, groups in free.items() if len(groups) + bool(list_places) > 1 and groups}
    lonely = [label for label in classes if label not in candidates]
    if lonely:
        classes_text = several(len(lonely), "class", "classes")
        notes.append(f"no videos held out for {purpose} in {classes_text} with too few: {some_of(lonely, 3)}")
    if not candidates:
        return classes, []
    _, holdout = hold_out(candidates, share, by=by, seed=seed, purpose=purpose)
    out = set(holdout)
    return {
        label: {name: places for name, places in groups.items() if not out & set(places)}
        for label, groups in classes.items()
    }, holdout


def _copies(videos: VideoSet, parts: _Parts, holdout: dict[str, list[int]]) -> set[int]:
    """Find training videos that are identical to held-out ones; `evaluate` would refuse to test on those.

    A held-out video that is identical to a listed one, or to a test video, is no longer held out.
    """
    contents = distinct_contents(videos.videos)
    earlier_contents = {contents[place] for place in parts.labelled or ()}
    duplicates: set[int] = set()
    for purpose in ("test", "validation"):
        free = [place for place in holdout[purpose] if contents[place] not in earlier_contents]
        duplicates |= {*holdout[purpose]} - {*free}
        holdout[purpose] = free
        earlier_contents |= {contents[place] for place in free}
    several_classes = _of_several_classes(videos, contents)
    if several_classes:
        parts.notes.append(
            f"identical videos in several classes: {some_of([videos[place].key for place in several_classes], 4)}; "
            "keep each in one class, because the labels contradict each other"
        )
    holdout_contents = {contents[place] for places in holdout.values() for place in places}
    copies = {place for place in parts.train if contents[place] in holdout_contents} - {
        p for ps in holdout.values() for p in ps
    }
    if duplicates | copies:
        parts.notes.append(
            f"{several(len(duplicates | copies), 'video')} left out: identical to videos of another part; "
            "`ssl-video check` lists identical files"
        )
    return copies


def _of_several_classes(videos: VideoSet, contents: Sequence[str]) -> list[int]:
    """Return the positions of videos with identical ones in another class."""
    labels: dict[str, set[str]] = {}
    for video, content in zip(videos.videos, contents, strict=True):
        if video.label is not None:
            labels.setdefault(content, set()).add(video.label)
    return [place for place, content in enumerate(contents) if len(labels.get(content, ())) > 1]


def _apart(videos: VideoSet, parts: _Parts, holdout: dict[str, list[int]], *, by: By) -> list[int]:
    """Return the unlabelled training videos, without those of a recording that is tested or validated on."""
    unlabelled = [place for place in parts.train if videos[place].label is None]
    if by != "group":
        return unlabelled
    groups = {videos[place].group for places in holdout.values() for place in places} - {None}
    near = [place for place in unlabelled if videos[place].group in groups]
    if near:
        parts.notes.append(
            f"{several(len(near), 'unlabelled video')} left out: their recordings are held out for testing or "
            "validation"
        )
    return [place for place in unlabelled if videos[place].group not in groups]


class _Parts(NamedTuple):
    """Positions of the videos of each part, as stated by the data or the official lists."""

    videos: VideoSet
    train: list[int]
    validation: list[int]
    test: list[int]
    is_official: bool
    labelled: list[int] | None
    """Positions of the videos that a list declares labelled."""
    notes: list[str]


def _parts(videos: VideoSet, train_list: Path | None, test_list: Path | None, labelled_list: Path | None) -> _Parts:
    notes, list_classes, labelled = list(videos.notes), dict[int, str](), None
    if train_list is None and test_list is not None:
        raise UserError("test_list was given without train_list; expected both, or HMDB-51's folder as train_list")
    places = range(len(videos))
    holdout: dict[str, list[int]] = {}
    if train_list is not None:
        official = read_list(train_list, videos)
        train, holdout["test"], holdout["validation"] = official.places, official.test, []
        list_classes |= official.classes
        if test_list is not None:
            official_test = read_list(test_list, videos)
            holdout["test"] = official_test.places
            list_classes |= official_test.classes
    else:
        for part in ("validation", "test"):
            part_places = [place for place in places if videos[place].part == part]
            holdout[part] = [place for place in part_places if videos[place].label is not None]
            if part_places:
                unlabelled = len(part_places) - len(holdout[part])
                without = f", {several(unlabelled, 'video')} without a class left out" if unlabelled else ""
                notes.append(f"the part {part} of the data is kept: {several(len(holdout[part]), 'video')}{without}")
        train = [place for place in places if videos[place].part in (None, "train")]
        part_names = [video.part for video in videos.videos if video.part is not None]
        other_parts = most_first(Counter(part for part in part_names if part not in PARTS))
        if other_parts:
            counts = ", ".join(f"{name} {count}" for name, count in other_parts.items())
            notes.append(f"{several(sum(other_parts.values()), 'video')} of other parts left out: {counts}")
    if labelled_list is not None:
        label_list = read_list(labelled_list, videos)
        list_classes |= label_list.classes
        train_places = set(train)
        labelled = [place for place in label_list.places if place in train_places]
        if len(labelled) < len(label_list.places):
            raise UserError(
                f"{labelled_list}: {len(label_list.places) - len(labelled)} of its videos are in the validation or "
                "test part; expected training videos"
            )
    if not train:
        parts_text = some_of(sorted({video.part for video in videos.videos if video.part is not None}))
        raise UserError(f"{videos.name}: found the parts {parts_text} and no training part; expected a part train")
    contradictions = [
        f"{video.key} ({list_classes[place]} in the list, {video.label} in the data)"
        for place, video in enumerate(videos.videos)
        if video.label is not None and place in list_classes and _differ(video, list_classes[place])
    ]
    if contradictions:
        notes.append(
            f"the lists state another class than the data for {several(len(contradictions), 'video')}, and the class "
            f"in the data is used: {some_of(contradictions, 3)}"
        )
    # A flat folder states no classes, but the lists do.
    labelled_videos = [
        video if video.label is not None else dataclasses.replace(video, label=list_classes.get(place))
        for place, video in enumerate(videos.videos)
    ]
    if labelled is not None and any(labelled_videos[place].label is None for place in labelled):
        raise UserError(
            f"{labelled_list}: neither this list nor the data state the classes of its videos; expected lines "
            "`path label`"
        )
    is_official = train_list is not None
    return _Parts(
        VideoSet(videos.name, labelled_videos),
        train,
        holdout["validation"],
        holdout["test"],
        is_official,
        labelled,
        notes,
    )


def _differ(video: Video, list_label: str) -> bool:
    """Return whether a list contradicts the class of a video in the data, in more than the spelling."""
    label = str(video.label)
    is_number = list_label.isdecimal() and not label.isdecimal()  # the list numbers classes that the data name
    is_folder = list_label == Path(video.key).parent.name  # the data are a table with classes, whatever the folder is
    data_name, list_name = (re.sub(r"[\W_]", "", normalize("NFKC", name)).casefold() for name in (label, list_label))
    return not is_number and not is_folder and data_name != list_name


def _readable(parts: _Parts) -> _Parts:
    """Leave out videos that cannot be opened.

    Raises:
        UserError: None of them can.
    """
    videos = parts.videos
    bad = unreadable(videos)
    if not bad:
        return parts
    if len(bad) == len(videos):
        place, reason = next(iter(bad.items()))
        raise UserError(
            f"{videos.name}: none of its {several(len(videos), 'video')} can be read; the first: {videos[place].key} "
            f"{reason}{''.join(f'; {note}' for note in parts.notes)}"
        )
    readable_places = [place for place in range(len(videos)) if place not in bad]
    number = {place: count for count, place in enumerate(readable_places)}
    readable_videos = VideoSet(videos.name, [videos[place] for place in readable_places])
    examples = some_of([f"{videos[place].key} {reason}" for place, reason in bad.items()], 3)
    note = (
        f"{several(len(bad), 'video')} left out, because {'it' if len(bad) == 1 else 'they'} cannot be read: {examples}"
    )
    lost_classes = [label for label in videos.classes if label not in readable_videos.classes]
    if lost_classes:
        note += f"; no videos remain of {several(len(lost_classes), 'class', 'classes')}: {some_of(lost_classes, 3)}"
    train, validation, test, labelled = (
        [number[place] for place in places or () if place in number]
        for places in (parts.train, parts.validation, parts.test, parts.labelled)
    )
    return parts._replace(
        videos=readable_videos, train=train, validation=validation, test=test,
        labelled=None if parts.labelled is None else labelled, notes=[*parts.notes, note],
    )  # fmt: skip


def unreadable(videos: VideoSet) -> dict[int, str]:
    """Open all videos without decoding them; return the positions of those that fail, each with the reason."""
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        problems = list(track(pool.map(_problem, videos.videos), total=len(videos), what="opening videos"))
    return {place: problem for place, problem in enumerate(problems) if problem is not None}


def _problem(video: Video) -> str | None:
    try:
        with av.logging.Capture(local=True), open_video(video.path):
            return None
    except UserError as error:
        return without_path(error, video.path).partition(";")[0]


def _pairs(videos: VideoSet, places: Sequence[int]) -> Labelled:
    return tuple((videos[place].key, str(videos[place].label)) for place in places)


def _check(draw: LabelDrawOptions, *, blocks: int, test: float) -> None:
    if blocks < 2:
        raise UserError(f"blocks is {blocks}; expected at least 2")
    if not 0 <= test < 1 or draw.validation_fraction + test >= 1:
        raise UserError(
            f"validation_fraction is {draw.validation_fraction:g} and test_fraction {test:g}; expected at least 0, "
            "together less than 1"
        )
