"""Label maps, which give each value of a label file the name of a structure; read from JSON, CSV and TSV."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contrastive_core.errors import UserError
from contrastive_core.text import several, some_of
from contrastive_core.training.documents import read_object, reading
from contrastive_core.training.names import check_label
from ssl_medseg.io.tables import read_table

ROUNDING = 1e-3
"""Largest distance from an integer at which a float counts as a label value; programs may save 1 as 0.9999999."""
_SHOWN = 8
_IGNORED = frozenset({"ignore", "ignored", "void", "unlabeled", "unlabelled", "unannotated", "not annotated"})
"""Names that data sets give to voxels without annotation."""
_SIDES = frozenset({"l", "r", "lh", "rh", "lt", "rt", "li", "re", "sin", "dex", "dx", "sx"})
_STEMS = (
    *("left", "right", "link", "recht", "gauche", "droit", "izquierd", "derech", "sinist", "destro", "destra"),
    *("dext", "esquerd", "direit", "лев", "прав", "左", "右"),
)
"""Abbreviations of left and right, and beginnings of the words in the languages of many users."""
_WORD = re.compile(r"[A-Z]?[^\W\d_A-Z]+\d*|[A-Z]+(?![^\W\d_A-Z])\d*")


def _states_side(word: str) -> bool:
    return word.lower() in _SIDES or word.lower().startswith(_STEMS) or word[-1] in "左右"


@dataclass(frozen=True)
class LabelMap:
    """Names of the structures and their values in label files; entry 0 is the background.

    Inside the package, a structure is represented by its position in this list, its class number. Files are written
    with the original values.

    Attributes:
        names: Names of the background and of every structure.
        values: Their values in label files; distinct integers.

    Raises:
        UserError: Names or values are repeated, their numbers differ, or a name cannot be printed.

    >>> heart = LabelMap(("background", "left ventricle", "right ventricle"), (0, 500, 600))
    >>> heart.to_classes(np.array([0, 600, 500]))
    array([0, 2, 1], dtype=uint8)
    >>> heart.lookup[np.array([0, 2, 1], dtype=np.uint8)]
    array([  0, 600, 500], dtype=int16)
    """

    names: tuple[str, ...]
    values: tuple[int, ...]

    def __post_init__(self) -> None:
        content = ", ".join(f"{value} {name}" for value, name in zip(self.values, self.names, strict=False))
        if not 1 <= len(self.values) <= 256 or len(self.names) != len(self.values):
            raise UserError(
                f"the label map has {several(len(self.names), 'name')} and {several(len(self.values), 'value')} "
                f"({content}); expected one name for each of 1 to 256 values"
            )
        for name in self.names:
            check_label(name, what="structure", source="label map")
        for what, entries in (("value", self.values), ("name", self.names)):
            duplicates = sorted({str(entry) for entry in entries if entries.count(entry) > 1})
            if duplicates:
                raise UserError(
                    f"the label map contains {', '.join(duplicates)} more than once ({content}); expected each "
                    f"{what} once"
                )

    def __len__(self) -> int:
        """Return the number of classes, including the background."""
        return len(self.values)

    def __str__(self) -> str:
        """Format as text: ``0 background, 1 RV, 2 myocardium``."""
        return ", ".join(f"{value} {name}" for value, name in zip(self.values, self.names, strict=True))

    @property
    def structures(self) -> tuple[str, ...]:
        """Names of the structures, without the background."""
        return self.names[1:]

    @property
    def sided(self) -> tuple[str, ...]:
        """Names of the structures that state a side of the body, in English or another of ten languages.

        >>> LabelMap(("background", "kidney_left", "NiereRechts", "RV", "L5"), (0, 1, 2, 3, 4)).sided
        ('kidney_left', 'NiereRechts')
        """
        return tuple(name for name in self.structures if any(map(_states_side, _WORD.findall(name))))

    def to_classes(self, array: NDArray[Any], *, name: object = "label") -> NDArray[np.uint8]:
        """Convert the values of a label file to class numbers.

        A float within 1e-3 of a value of the map counts as that value.

        Args:
            array: Label values, integers or floats, of any shape.
            name: File to name in errors.

        Returns:
            Class numbers, uint8 of the same shape.

        Raises:
            UserError: There are values that are not in the map, including NaN and fractions; they are never treated as
                background.
        """
        classes = np.zeros(array.shape, dtype=np.uint8)
        is_known = np.zeros(array.shape, dtype=bool)
        fractions = np.issubdtype(array.dtype, np.floating)
        for number, value in enumerate(self.values):
            here = np.abs(array - value) <= ROUNDING if fractions else array == value
            classes[here] = number
            is_known |= here
        if not is_known.all():
            raise UserError(
                f"{name}: found {_describe_values(array[~is_known])}; expected only {self}. Correct the label or the "
                "map"
            )
        return classes

    @property
    def lookup(self) -> NDArray[Any]:
        """Label value of each class, ``[C]``, in the smallest of uint8, int16 and int32 that holds all values.

        ``lookup[classes]`` converts class numbers to label values, the inverse of `to_classes`.
        """
        kinds = (np.uint8, np.int16, np.int32)
        kind = next(k for k in kinds if all(np.iinfo(k).min <= value <= np.iinfo(k).max for value in self.values))
        return np.asarray(self.values, dtype=kind)

    def to_json(self) -> dict[str, list[Any]]:
        """Return the content for a JSON file, which `from_json` reads."""
        return {"names": list(self.names), "values": list(self.values)}

    @classmethod
    def from_json(cls, content: Mapping[str, Sequence[Any]]) -> LabelMap:
        """Create a label map from the content that `to_json` returned.

        Raises:
            UserError: The content is not a label map.
        """
        try:
            return cls(tuple(map(str, content["names"])), tuple(map(_integer, content["values"])))
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"expected a label map with names and values, got {content!r}") from error


def _integer(value: Any) -> int:
    """Convert a number or its text; 1.0 and "1.0" are integers, 1.5 and true are not."""
    number = float(value)
    if isinstance(value, bool) or not number.is_integer():
        raise ValueError(f"{value!r} is not an integer")
    return int(number)


def _describe_values(unknown: NDArray[Any]) -> str:
    values, counts = np.unique(unknown, return_counts=True)
    texts = (f"{value:g} in {several(int(count), 'voxel')}" for value, count in zip(values, counts, strict=True))
    return f"the value{'s' if len(values) > 1 else ''} {some_of(texts, _SHOWN)}"


_FORMS = (
    'JSON {"0": "background", "1": "RV"} or {"background": 0, "RV": 1}, alone or under "labels", or a CSV or TSV file '
    "with the columns index and name"
)


def read_label_map(file: Path) -> LabelMap:
    """Read a label map from a JSON, CSV or TSV file.

    The background (value 0, or the entry named background) comes first and may be omitted in the file; the structures
    follow in the order of their values.

    Raises:
        UserError: The file does not exist or does not contain a label map.
    """
    if file.suffix.lower() in (".csv", ".tsv"):
        rows = read_table(file, needed=("index", "name"))
        return _checked(file, [(row["index"], row["name"]) for row in rows])
    try:
        content = read_object(file)
    except UserError as error:
        if isinstance(error.__cause__, json.JSONDecodeError):  # such as a list of labels of ITK-SNAP or 3D Slicer
            raise UserError(f"{file}: is not readable as JSON ({error.__cause__}); expected {_FORMS}") from error
        raise
    return label_map_of(content, file)


def label_map_of(content: Mapping[str, Any], file: Path) -> LabelMap:
    """Return the label map in the content of a JSON file.

    Args:
        content: Content of the file.
        file: File to name in errors.

    Raises:
        UserError: The content is not a label map, or uses nnU-Net's regions or ignore label, which are not supported.
    """
    entries = content.get("labels", content)
    if isinstance(entries, dict) and set(entries) == {"names", "values"}:
        with reading(file, "contains no label map", f"expected {_FORMS}"):
            return LabelMap.from_json(entries)
    if not isinstance(entries, dict) or not entries:
        raise UserError(f"{file}: found no label map; expected {_FORMS}")
    regions = [name for name, value in entries.items() if isinstance(value, list)]
    if regions:
        raise UserError(
            f"{file}: the label map gives several values (a region) to {', '.join(regions)}; expected one value per "
            "structure. Convert the labels so that every voxel belongs to one structure"
        )
    by_value = all(isinstance(name, str) for name in entries.values())
    return _checked(file, [(key, name) if by_value else (name, key) for key, name in entries.items()])


def _checked(file: Path, pairs: list[tuple[Any, Any]]) -> LabelMap:
    with reading(file, "contains a label value that is not an integer", f"expected {_FORMS}"):
        entries = sorted((_integer(value), str(name)) for value, name in pairs)
    names = [name for value, name in entries if value and name.strip().casefold() in _IGNORED]
    if names:
        raise UserError(
            f"{file}: the label map has a structure named {names[0]!r}; ignored voxels are not supported. Convert "
            "these voxels to background"
        )
    zero = [entry for entry in entries if entry[0] == 0]
    by_name = [entry for entry in entries if entry[1].strip().casefold() == "background"]
    if zero and by_name and zero != by_name:
        raise UserError(
            f"{file}: the label map gives the name {zero[0][1]!r} to the value 0, and 'background' to the value "
            f"{by_name[0][0]}; expected the background to be 0. Correct the map, or the values of the masks"
        )
    background = zero or by_name
    first = background[0] if background else (0, "background")
    ordered = [first, *(entry for entry in entries if entry != first)]
    with reading(file, "contains no label map", f"expected {_FORMS}"):
        return LabelMap(tuple(name for _, name in ordered), tuple(value for value, _ in ordered))
