"""Find the names of classes whose folders are WordNet identifiers (wnids), as in ImageNet."""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from contrastive_core.errors import UserError
from contrastive_core.training.documents import read_text
from ssl_vision.data.open import locate

NAME_FILES = ("LOC_synset_mapping.txt", "synset_words.txt", "words.txt")
"""Files with one wnid and its names per line, as published with ImageNet and Tiny ImageNet."""

_WNID = re.compile(r"n\d{8}")


def find_class_names(data: str, classes: Sequence[str]) -> dict[str, str]:
    """Find names for classes that are wnids: ``n01440764`` -> ``tench``, the first of several synonyms.

    Names come from `NAME_FILES` in the folder of the data or its parent, from torchvision for the 1,000 classes of
    ImageNet, and from timm if it is installed. Classes that none of them lists have no name; the result is empty if the
    classes are not wnids.
    """
    if not classes or not all(_WNID.fullmatch(name) for name in classes):
        return {}
    names: dict[str, str] = {}
    try:
        root = locate(data)[1].resolve()
    except UserError:
        root = None
    for folder in () if root is None else (root, root.parent):
        for file in (folder / name for name in NAME_FILES):
            if file.is_file():
                names = _read(file) | names
    missing = [name for name in classes if name not in names]
    if missing:
        names = _library_names(classes, missing) | names
    return {name: names[name] for name in classes if name in names}


def _read(file: Path) -> dict[str, str]:
    """Read the lines that begin with a wnid: wnid -> name."""
    names = {}
    for line in read_text(file, expected="lines with a wnid and its names").splitlines():
        wnid, _, synonyms = line.strip().replace("\t", " ").partition(" ")
        if _WNID.fullmatch(wnid) and (name := synonyms.partition(",")[0].strip()):
            names[wnid] = name
    return names


def _library_names(classes: Sequence[str], missing: Sequence[str]) -> dict[str, str]:
    """Return the names from installed libraries."""
    if len(classes) == 1000:
        from torchvision.models import ResNet18_Weights  # noqa: PLC0415 - takes half a second

        # torchvision lists the names without wnids, in the order of the sorted wnids.
        return dict(zip(sorted(classes), ResNet18_Weights.DEFAULT.meta["categories"], strict=True))
    if importlib.util.find_spec("timm") is None:
        return {}
    timm_data: Any = importlib.import_module("timm.data")  # an extra that takes seconds to import
    info = timm_data.ImageNetInfo("imagenet-22k")
    wnids = set(info.label_names())
    return {
        name: str(info.label_name_to_description(name, detailed=False)).partition(",")[0]
        for name in missing
        if name in wnids
    }
