"""Draw, read and write splits: training videos, the labelled ones among them, validation and test videos.

A split is a file with hashes, so that every run with few labels uses the same videos. Videos that belong together (such
as clips of one recording) stay together.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Literal, TypeVar

from contrastive_core.errors import UserError
from contrastive_core.rng import derive, permutation
from contrastive_core.text import several, some_of
from contrastive_core.training.documents import read_json, reading, to_json_lines
from contrastive_core.training.outputs import write_once
from ssl_video.data.videos import VideoSet

FORMAT = "ssl-video split 1"

Labelled = tuple[tuple[str, str], ...]
"""Keys of videos, each with its class."""


@dataclass(frozen=True)
class Split:
    """A split of a data set, by the keys of its videos.

    Attributes:
        classes: Class names in the order of their numbers.
        train: All training videos, with or without labels; their labels are not stored here.
        labelled: Training videos whose label may be used.
        validation: Videos for choosing settings.
        test: Videos for the final evaluation.
        settings: Settings that made the split.
    """

    classes: tuple[str, ...]
    train: tuple[str, ...]
    labelled: Labelled
    validation: Labelled = ()
    test: Labelled = ()
    settings: dict[str, object] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """SHA-256 hash of the classes and all lists."""
        lists = [self.classes, self.train, self.labelled, self.validation, self.test]
        return hashlib.sha256(json.dumps(lists, ensure_ascii=True, separators=(",", ":")).encode()).hexdigest()

    def check(self, name: str = "the split") -> None:
        """Check that the parts do not overlap.

        Raises:
            UserError: A video is in two parts, a labelled video is not in train, or a label is not a class.
        """
        holdout = {"validation": {key for key, _ in self.validation}, "test": {key for key, _ in self.test}}
        parts = {"train": set(self.train), **holdout}
        for first, second in (("train", "validation"), ("train", "test"), ("validation", "test")):
            overlap = sorted(parts[first] & parts[second])
            if overlap:
                raise UserError(
                    f"{name}: {several(len(overlap), 'video')} in {first} and also in {second} ({some_of(overlap)})"
                )
        strangers = sorted({key for key, _ in self.labelled} - parts["train"])
        if strangers:
            raise UserError(f"{name}: {several(len(strangers), 'labelled video')} not in train ({some_of(strangers)})")
        for entries in (self.labelled, self.validation, self.test):
            keys = [key for key, _ in entries]
            if len(set(keys)) < len(keys):
                raise UserError(f"{name}: lists a video twice")
            unknown = sorted({label for _, label in entries} - set(self.classes))
            if unknown:
                raise UserError(f"{name}: names classes that it does not list ({some_of(unknown)})")
        if not self.train or not self.labelled:
            raise UserError(f"{name}: lists no training videos, or none with a label")

    def to_bytes(self) -> bytes:
        """Return the content of the split file, with one video per line."""
        head = {"format": FORMAT, **{"settings": self.settings}, "sha256": self.digest, "classes": list(self.classes)}
        return to_json_lines(head, {name: getattr(self, name) for name in ("train", "labelled", "validation", "test")})


def read_split(file: str | Path) -> Split:
    """Read a split file.

    Raises:
        UserError: There is no such file, it is not a split file or was changed by hand, or its parts overlap.
    """
    path = Path(file)
    content = read_json(path)
    with reading(path, "is not a split file", "write it with `ssl-video make-splits`"):
        if content["format"] != FORMAT:
            raise UserError(f"{path}: found format {content['format']!r}, expected {FORMAT!r}")
        parts = {name: _pairs(content[name]) for name in ("labelled", "validation", "test")}
        split = Split(
            classes=tuple(map(str, content["classes"])),
            train=tuple(map(str, content["train"])),
            settings=dict(content["settings"]),
            **parts,
        )
        digest = content["sha256"]
    if digest != split.digest:
        raise UserError(
            f"{path}: was changed after it was written: its lists do not have the hash that it states; write it again "
            "with `ssl-video make-splits`"
        )
    split.check(str(path))
    return split


def write_split(file: Path, split: Split) -> None:
    """Write a split file; an existing file must be identical.

    Raises:
        UserError: A different file of that name exists, or parts of the split overlap.
    """
    write_splits({file: split})


def write_splits(splits: Mapping[Path, Split], *, inputs: Iterable[Path | str] = (), overwrite: bool = False) -> None:
    """Write several split files, all or none of them; existing files must be identical.

    Args:
        splits: Split to write to each file.
        inputs: Input files of the splits, which are never replaced.
        overwrite: Replace files that differ.

    Raises:
        UserError: A different file of one of these names exists, or parts of a split overlap.
    """
    for file, split in splits.items():
        split.check(str(file))
    contents = {file: split.to_bytes() for file, split in splits.items()}
    write_once(contents, command="ssl-video make-splits", inputs=inputs, overwrite=overwrite)


def select(videos: VideoSet, keys: Iterable[str], *, file: str | Path) -> list[int]:
    """Return the positions of videos in a set by their keys; labels are not read.

    Raises:
        UserError: Some are missing.
    """
    key_list = list(keys)
    places = [videos.place(key) for key in key_list]
    missing = [key for key, place in zip(key_list, places, strict=True) if place is None]
    if missing:
        raise UserError(
            f"{file}: lists {several(len(missing), 'video')} not in {videos.name} ({some_of(missing)}), whose videos "
            f"have names such as {videos[0].key}; give the data that the file was made for"
        )
    return [place for place in places if place is not None]


def select_labelled(videos: VideoSet, listed: Labelled, classes: Sequence[str], *, file: str | Path) -> VideoSet:
    """Return the listed videos as a set of their own, with the classes of the split.

    Raises:
        UserError: Some are missing, or the data states another class for one.
    """
    places = select(videos, (key for key, _ in listed), file=file)
    for place, (key, label) in zip(places, listed, strict=True):
        if videos[place].label not in (label, None):
            raise UserError(
                f"{file}: lists {key} in class {label}, but in {videos.name} it has class {videos[place].label}; make "
                "the file again for these data"
            )
    subset = videos.subset(places)
    return VideoSet(videos.name, subset.videos, classes=classes)


def _pairs(rows: Iterable[Sequence[str]]) -> Labelled:
    return tuple((str(key), str(label)) for key, label in rows)


By = Literal["clip", "group", "block"]
_T = TypeVar("_T")
Groups = dict[str, list[int]]
"""Name of a group -> positions of its videos."""


def groups_by_class(videos: VideoSet, *, by: By, blocks: int = 10) -> dict[str, Groups]:
    """Group the videos of every class into units that a split keeps together.

    ``clip``: each video alone. ``group``: as the data states (names as in UCF-101, a CSV column); a group with videos
    of several classes appears in each. ``block``: the videos of a class in the order of their keys, cut into `blocks`
    runs of consecutive videos, for data in which neighbours are alike.

    Raises:
        UserError: A video has no label, or no group although `by` is ``group``.
    """
    videos.labels()
    members: dict[str, list[int]] = defaultdict(list)
    for place, video in enumerate(videos.videos):
        members[str(video.label)].append(place)
    by_class: dict[str, Groups] = {}
    for label, places in sorted(members.items()):
        groups: Groups = defaultdict(list)
        for number, place in enumerate(places):
            groups[_group(videos, place, by, number * blocks // len(places))].append(place)
        by_class[label] = dict(groups)
    return by_class


def hold_out(
    classes: Mapping[str, Groups], share: float, *, by: By, seed: int, purpose: str
) -> tuple[dict[str, Groups], list[int]]:
    """Hold out whole groups of every class until they make up at least `share` of its videos.

    A group with videos of several classes is held out of all of them. Blocks are taken from the end, so that as few as
    possible adjoin the remaining ones; groups and clips at random.

    Returns:
        What remains, and the positions of the held-out videos.

    Raises:
        UserError: Nothing of a class would remain.
    """
    if not share:
        return dict(classes), []
    out: set[tuple[str, str]] = set()
    for label, groups in classes.items():
        names = list(groups)
        order = names[::-1] if by == "block" else _permute(names, derive(seed, purpose, label))
        target = Fraction(repr(share)) * sum(map(len, groups.values()))
        count = sum(len(groups[name]) for name in names if (_owner(by, label), name) in out)
        for name in order:
            if count < target and (_owner(by, label), name) not in out:
                out.add((_owner(by, label), name))
                count += len(groups[name])
    stays: dict[str, Groups] = {}
    holdout: list[int] = []
    for label, groups in classes.items():
        stays[label] = {name: places for name, places in groups.items() if (_owner(by, label), name) not in out}
        holdout += [place for name, places in groups.items() if name not in stays[label] for place in places]
        if not stays[label]:
            raise UserError(
                f"class {label} has {len(groups)} {by}(s), and all of them would be held out for {purpose}; expected "
                "at least one more for training. Split by clip or block, or leave the part out (0)"
            )
    return stays, sorted(holdout)


def _owner(by: By, label: str) -> str:
    # A group of the data is the same in all classes; blocks are numbered in each class.
    return label if by == "block" else ""


def ranked(classes: Mapping[str, Groups], *, seed: int) -> dict[str, list[int]]:
    """Return the videos of every class in the order in which they are labelled: group by group, in random order.

    The first k make up the selection of k videos, so that a smaller selection is part of a larger one.
    """
    order = {}
    for label, groups in classes.items():
        order[label] = [
            place
            for name in _permute(list(groups), derive(seed, "labels", label))
            for place in _permute(groups[name], derive(seed, "within", label, name))
        ]
    return order


def first_of_each(order: Mapping[str, list[int]], *, fraction: float | None = None, count: int = 0) -> list[int]:
    """Select the first ``max(1, round(fraction * n))`` of the n videos of every class, or `count` of each.

    Raises:
        UserError: A class has fewer than `count`.
    """
    selection: list[int] = []
    for label, places in order.items():
        number = count if fraction is None else max(1, round(Fraction(repr(fraction)) * len(places)))
        if number > len(places):
            raise UserError(f"class {label} has {several(len(places), 'training video')}; expected at least {number}")
        selection += places[:number]
    return sorted(selection)


def _group(videos: VideoSet, place: int, by: By, block: int) -> str:
    video = videos[place]
    if by == "clip":
        return video.key
    if by == "block":
        return f"block {block}"
    if video.group is None:
        raise UserError(
            f"{video.path}: has no group; expected a column `group` in the CSV file, or names such as UCF-101's "
            "(v_Diving_g03_c02.avi). Split by block (neighbours stay together) or by clip instead"
        )
    return video.group


def _permute(items: Iterable[_T], seed: int) -> list[_T]:
    values = list(items)
    return [values[i] for i in permutation(seed, len(values)).tolist()]
