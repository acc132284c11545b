"""Recognise the parts of a data set (train, val, test) under their common names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from contrastive_core.errors import UserError

SPLITS = ("train", "val", "test")
"""Canonical names of the parts, in their usual order."""

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
    """Split found in the name of a folder.

    Attributes:
        split: Canonical name of the split.
        is_whole: Whether the folder name consists of this word alone.
        rest: Other words of the folder name, without generic words such as ``set``.
    """

    split: str
    is_whole: bool
    rest: tuple[str, ...]


def canonical_split(name: str) -> str:
    """Return the canonical name of a split: train for ``Training``, val for ``validation``, others unchanged.

    >>> canonical_split("VALID"), canonical_split("holdout")
    ('val', 'holdout')
    """
    return _WORDS.get(name.strip().lower(), name)


def split_word(name: str) -> SplitWord | None:
    """Find a split in the name of a folder, or return None if the name contains none.

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
    """Find the subfolders that contain splits.

    The name of such a folder is a split, with or without generic words (``train_set``). If no name is, several folders
    whose names differ only in the split (``seg_train``, ``seg_test``) are used.

    Args:
        folder: Path of the folder, for error messages.
        names: Names of its subfolders.

    Returns:
        Name of the folder of each split that was found.

    Raises:
        UserError: Two folders contain the same split.
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
                f"{folder}: found the folders {' and '.join(folders)}, all of split {split}, expected only one; merge "
                "or rename them"
            )
    return {split: folders[0] for split, folders in found.items()}
