"""Recognise the parts of a data set (train, val, test) under their common names."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from contrastive_core.errors import UserError
from contrastive_core.text import some_of

SPLITS = ("train", "val", "test")
"""Canonical names of the parts, in their usual order."""


def _plain(name: str) -> str:
    """Return a name in lower case and without accents."""
    return "".join(c for c in unicodedata.normalize("NFKD", name.casefold()) if not unicodedata.combining(c))


_WORDS = {
    _plain(word): split
    for split, synonyms in {
        "train": "train training trainingsdaten entrenamiento entrainement apprentissage addestramento treino "
        "treinamento обучение 训练 訓練 学習 훈련 학습",
        "val": "val valid validate validation dev validierung validacion validazione validacao валидация "
        "验证 驗證 検証 검증",
        "test": "test testing testdaten prueba pruebas teste тест 测试 測試 テスト 테스트",
    }.items()
    for word in synonyms.split()
}
# Words that are often added to the name of a split: train_set, test-images, TrainData.
_FILLERS = frozenset(
    {
        *("", "set", "data", "dataset", "split", "folder", "samples"),
        *("image", "images", "img", "imgs", "video", "videos", "clips", "集", _plain("データ")),
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
    return _WORDS.get(_plain(name.strip()), name)


def split_word(name: str) -> SplitWord | None:
    """Find a split in the name of a folder, or return None if the name contains none.

    >>> split_word("seg_Train")
    SplitWord(split='train', is_whole=False, rest=('seg',))
    """
    if _plain(name) in _WORDS:
        return SplitWord(_WORDS[_plain(name)], True, ())
    result, rest = None, []
    # Words also begin at digits and capitals: train2017, trainA.
    text = re.sub(r"(?<=[^\W\d_])(?=\d)|(?<=\d)(?=[^\W\d_])|(?<=[a-z])(?=[A-Z])", "_", name)
    for token in re.split(r"[\W_]+", _plain(text)):
        split = _WORDS.get(token)
        if split is None:  # trainset, testdata
            split = next(
                (s for word, s in _WORDS.items() if token.startswith(word) and token[len(word) :] in _FILLERS), None
            )
        if split is not None and result is None:
            result = split
        elif token not in _FILLERS:
            rest.append(token)
    return None if result is None else SplitWord(result, False, tuple(rest))


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
        UserError: Two folders contain the same split, or there are the splits of several data sets.
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
    splits = padded | exact
    if not splits:
        groups = [group for group in alike.values() if len(group) > 1]
        if len(groups) > 1:
            found_names = sorted(name for group in groups for folders in group.values() for name in folders)
            raise UserError(
                f"{folder}: found the splits of several data sets ({some_of(found_names)}), expected train, val "
                "and test once; move each data set into a folder of its own, or merge them"
            )
        splits = groups[0] if groups else {}
    for split, folders in splits.items():
        if len(folders) > 1:
            raise UserError(
                f"{folder}: found the folders {' and '.join(folders)}, all of split {split}, expected only one; merge "
                "or rename them"
            )
    return {split: folders[0] for split, folders in splits.items()}
