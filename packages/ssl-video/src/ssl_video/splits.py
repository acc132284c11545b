"""Splits: which videos are learned from, which of them with labels, and which are kept to validate and to test.

A split is a file with hashes, so that every run with few labels sees the same ones. Videos that belong together (the
clips of one recording) stay together.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from contrastive_core.errors import UserError
from contrastive_core.training.files import write_atomic
from ssl_video.data.video_set import VideoSet

FORMAT = "ssl-video split 1"
_NAMED = 3

Labelled = tuple[tuple[str, str], ...]
"""Keys of videos, each with its class."""


@dataclass(frozen=True)
class Split:
    """A split of a data set, by the keys of its videos.

    Attributes:
        classes: names, in the order of their numbers.
        train: all videos to learn from, with labels or without; no label is written here.
        labelled: those of them whose label may be seen.
        validation: kept to choose settings by.
        test: kept to the end.
        settings: how it was made.
    """

    classes: tuple[str, ...]
    train: tuple[str, ...]
    labelled: Labelled
    validation: Labelled = ()
    test: Labelled = ()
    settings: dict[str, object] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """SHA-256 over classes and all lists."""
        lists = [self.classes, self.train, self.labelled, self.validation, self.test]
        return hashlib.sha256(json.dumps(lists, ensure_ascii=True, separators=(",", ":")).encode()).hexdigest()

    def check(self, name: str = "the split") -> None:
        """See that nothing overlaps.

        Raises:
            UserError: a video in two parts, a labelled one that is not learned from, a class that is none.
        """
        held = {"validation": {key for key, _ in self.validation}, "test": {key for key, _ in self.test}}
        parts = {"train": set(self.train), **held}
        for first, second in (("train", "validation"), ("train", "test"), ("validation", "test")):
            shared = sorted(parts[first] & parts[second])
            if shared:
                raise UserError(f"{name}: {len(shared)} videos are in {first} and in {second} ({_some(shared)})")
        strangers = sorted({key for key, _ in self.labelled} - parts["train"])
        if strangers:
            raise UserError(f"{name}: {len(strangers)} labelled videos are not in train ({_some(strangers)})")
        for listed in (self.labelled, self.validation, self.test):
            keys = [key for key, _ in listed]
            if len(set(keys)) < len(keys):
                raise UserError(f"{name}: lists a video twice")
            unknown = sorted({label for _, label in listed} - set(self.classes))
            if unknown:
                raise UserError(f"{name}: names classes that it does not list ({_some(unknown)})")
        if not self.train or not self.labelled:
            raise UserError(f"{name}: lists no videos to learn from, or none with a label")

    def to_bytes(self) -> bytes:
        """The file, a video a line."""
        head = {"format": FORMAT, **{"settings": self.settings}, "sha256": self.digest, "classes": list(self.classes)}
        lines = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
        for name in ("train", "labelled", "validation", "test"):
            listed = [json.dumps(list(entry) if isinstance(entry, tuple) else entry) for entry in getattr(self, name)]
            lines.append(f' "{name}": [' + ("\n  " + ",\n  ".join(listed) + "\n ]" if listed else "]"))
        return ("{\n" + ",\n".join(lines) + "\n}\n").encode()


def read_split(file: str | Path) -> Split:
    """A split file.

    Raises:
        UserError: no such file, not one of ours, changed after it was written, or parts that overlap.
    """
    path = Path(file)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); expected a split file, as `ssl-video make-splits` writes"
        ) from error
    except ValueError as error:
        raise UserError(f"{path}: is not JSON ({error}); expected a split file") from error
    try:
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
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}: is not a split file ({type(error).__name__}: {error}); write it with `ssl-video make-splits`"
        ) from error
    if digest != split.digest:
        raise UserError(
            f"{path}: was changed after it was written, its lists do not have the hash it states; write it again with "
            "`ssl-video make-splits`"
        )
    split.check(str(path))
    return split


def write_split(file: Path, split: Split) -> None:
    """Write a split file; one that is there already must say the same.

    Raises:
        UserError: there is another file of that name, or parts of the split overlap.
    """
    split.check(str(file))
    if file.exists() and file.read_bytes() != split.to_bytes():
        raise UserError(
            f"{file}: is there already and says something else; runs may have used it. Choose another folder"
        )
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(file, split.to_bytes())


def select(videos: VideoSet, keys: Iterable[str], *, file: str | Path) -> list[int]:
    """Where in a set the videos of these keys are; no label is looked at.

    Raises:
        UserError: some are not there.
    """
    listed = list(keys)
    places = [videos.place(key) for key in listed]
    missing = [key for key, place in zip(listed, places, strict=True) if place is None]
    if missing:
        raise UserError(
            f"{file}: lists {len(missing)} videos that are not in {videos.name} ({_some(missing)}), whose videos are "
            f"called {videos[0].key}; give the data it was made for"
        )
    return [place for place in places if place is not None]


def select_labelled(videos: VideoSet, listed: Labelled, classes: Sequence[str], *, file: str | Path) -> VideoSet:
    """The listed videos as a set of their own, with the classes of the split.

    Raises:
        UserError: some are not there, or the data says that one is of another class.
    """
    places = select(videos, (key for key, _ in listed), file=file)
    for place, (key, label) in zip(places, listed, strict=True):
        if videos[place].label not in (label, None):
            raise UserError(
                f"{file}: says that {key} is of class {label}, in {videos.name} it is of {videos[place].label}; make "
                "the file again for these data"
            )
    chosen = videos.subset(places)
    return VideoSet(videos.name, chosen.videos, classes=classes)


def _pairs(listed: Iterable[Sequence[str]]) -> Labelled:
    return tuple((str(key), str(label)) for key, label in listed)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
