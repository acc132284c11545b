"""Recognise the parts of a data set (train, val, test) by the many names that people give them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from contrastive_core.errors import UserError

SPLITS = ("train", "val", "test")
"""The parts, in their usual order."""

_WORDS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validate": "val", "validation": "val",
    "dev": "val", "test": "test", "testing": "test",
}  # fmt: skip
# Words that are often added to the name of a split: train_set, test-images, TrainData.
_FILLERS = frozenset(
    {
        *("", "set", "data", "dataset", "split", "folder", "samples"),
        *("image", "images", "img", "imgs", "video", "videos", "clips"),
    }
)


class SplitWord(NamedTuple):
    """A split in the name of a folder.

    Attributes:
        split: The split.
        is_whole: Whether it is the whole name.
        rest: The other words of the name, without those that say nothing, such as ``set``.
    """

    split: str
    is_whole: bool
    rest: tuple[str, ...]


def canonical_split(name: str) -> str:
    """Normalise the name of a split: ``Training`` is train, ``validation`` is val; other names are unchanged.

    >>> canonical_split("VALID"), canonical_split("holdout")
    ('val', 'holdout')
    """
    return _WORDS.get(name.strip().lower(), name)


def split_word(name: str) -> SplitWord | None:
    """Find a split in the name of a folder; None if it has none.

    >>> split_word("seg_Train")
    SplitWord(split='train', is_whole=False, rest=('seg',))
    """
    lowered = name.lower()
    if lowered in _WORDS:
        return SplitWord(_WORDS[lowered], True, ())
    found, rest = None, []
    for token in re.split(r"[\W_]+", lowered):
        split = _WORDS.get(token)
        if split is None:  # trainset, testdata
            split = next(
                (s for word, s in _WORDS.items() if token.startswith(word) and token[len(word) :] in _FILLERS), None
            )
        if split is not None and found is None:
            found = split
        elif token not in _FILLERS:
            rest.append(token)
    return None if found is None else SplitWord(found, False, tuple(rest))


def find_splits(folder: Path, names: Sequence[str]) -> dict[str, str]:
    """Find the splits among the folders in a folder: split -> name of its folder.

    A name that is a split, or a split and words that say nothing (``train_set``), is one. Failing these, so are several
    folders that differ only in that word (``seg_train``, ``seg_test``).

    Raises:
        UserError: There are two folders for one split.
    """
    exact: dict[str, list[str]] = {}
    padded: dict[str, list[str]] = {}
    alike: dict[tuple[str, ...], dict[str, list[str]]] = {}
    for name in names:
        match split_word(name):
            case SplitWord(split, True, _):
                exact.setdefault(split, []).append(name)
            case SplitWord(split, False, ()):
                padded.setdefault(split, []).append(name)
            case SplitWord(split, False, rest):
                alike.setdefault(rest, {}).setdefault(split, []).append(name)
    found = padded | exact
    if not found:
        groups = [group for group in alike.values() if len(group) > 1]
        found = groups[0] if len(groups) == 1 else {}
    for split, folders in found.items():
        if len(folders) > 1:
            raise UserError(
                f"{folder}: found the folders {' and '.join(folders)}, all of split {split}, expected one; merge or "
                "rename them"
            )
    return {split: folders[0] for split, folders in found.items()}
