"""Label maps: the values of label files and the structures they stand for; read from JSON, CSV and TSV."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contrastive_core.errors import UserError
from contrastive_core.training import documents
from contrastive_core.training.documents import reading
from contrastive_core.training.names import check_label
from ssl_medseg.io.tables import read_table

# Masks that other programs saved as floats hold 0.9999999; more than this is no label any more.
ROUNDING = 1e-3
_SHOWN = 8


@dataclass(frozen=True)
class LabelMap:
    """Names of the structures and the values that stand for them in label files; entry 0 is the background.

    Inside the package a structure is its place in this list, its class; files that are written hold the values again.

    Attributes:
        names: of the background and of every structure.
        values: whole numbers, as many, all different.

    >>> heart = LabelMap(("background", "left ventricle", "right ventricle"), (0, 500, 600))
    >>> heart.to_classes(np.array([0, 600, 500]))
    array([0, 2, 1], dtype=uint8)
    >>> heart.lookup[np.array([0, 2, 1], dtype=np.uint8)]
    array([  0, 600, 500], dtype=int16)
    """

    names: tuple[str, ...]
    values: tuple[int, ...]

    def __post_init__(self) -> None:
        found = ", ".join(f"{value} {name}" for value, name in zip(self.values, self.names, strict=False))
        if not 1 <= len(self.values) <= 256 or len(self.names) != len(self.values):
            raise UserError(
                f"a label map has one name for each of its 1 to 256 values, got {len(self.names)} names and "
                f"{len(self.values)} values ({found})"
            )
        for name in self.names:
            check_label(name, what="structure", source="label map")
        for what, entries in (("value", self.values), ("name", self.names)):
            twice = sorted({str(entry) for entry in entries if entries.count(entry) > 1})
            if twice:
                raise UserError(f"a label map says every {what} once, got {', '.join(twice)} more than once ({found})")

    def __len__(self) -> int:
        """Number of classes, the background among them."""
        return len(self.values)

    def __str__(self) -> str:
        """``0 background, 1 RV, 2 myocardium``."""
        return ", ".join(f"{value} {name}" for value, name in zip(self.values, self.names, strict=True))

    @property
    def structures(self) -> tuple[str, ...]:
        """The names without the background's."""
        return self.names[1:]

    def to_classes(self, array: NDArray[Any], *, name: object = "label") -> NDArray[np.uint8]:
        """Values of a label file as classes, uint8 of the same shape.

        Floats are taken for the whole number within 1e-3 of them.

        Args:
            array: whole numbers or floats.
            name: what the error calls it: the file.

        Raises:
            UserError: values that are not in the map, among them NaN and fractions; none is ever taken for background.
        """
        classes = np.zeros(array.shape, dtype=np.uint8)
        known = np.zeros(array.shape, dtype=bool)
        fractions = np.issubdtype(array.dtype, np.floating)
        for number, value in enumerate(self.values):
            here = np.abs(array - value) <= ROUNDING if fractions else array == value
            classes[here] = number
            known |= here
        if not known.all():
            raise UserError(
                f"{name}: found {_values_in_words(array[~known])}, expected only {self}; correct the labels or the map"
            )
        return classes

    @property
    def lookup(self) -> NDArray[Any]:
        """The value of each class, ``[C]``, in the smallest of uint8, int16 and int32 that holds them all.

        ``lookup[classes]`` are the values of a label file: the inverse of `to_classes`.
        """
        kinds = (np.uint8, np.int16, np.int32)
        kind = next(k for k in kinds if all(np.iinfo(k).min <= value <= np.iinfo(k).max for value in self.values))
        return np.asarray(self.values, dtype=kind)

    def to_json(self) -> dict[str, list[Any]]:
        """For JSON; `from_json` reads it."""
        return {"names": list(self.names), "values": list(self.values)}

    @classmethod
    def from_json(cls, content: Mapping[str, Sequence[Any]]) -> LabelMap:
        """A label map from what `to_json` gave.

        Raises:
            UserError: it is something else.
        """
        try:
            return cls(tuple(map(str, content["names"])), tuple(map(int, content["values"])))
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"expected a label map with names and values, got {content!r}") from error


def _values_in_words(unknown: NDArray[Any]) -> str:
    values, counts = np.unique(unknown, return_counts=True)
    shown = [f"{value:g} in {count:,} voxels" for value, count in zip(values[:_SHOWN], counts[:_SHOWN], strict=True)]
    more = f" and {len(values) - _SHOWN} further values" if len(values) > _SHOWN else ""
    return f"the value{'s' if len(values) > 1 else ''} {', '.join(shown)}{more}"


_FORMS = (
    'JSON {"0": "background", "1": "RV"} or {"background": 0, "RV": 1}, alone or under "labels", or a CSV or TSV file '
    "with the columns index and name"
)


def read_label_map(file: Path) -> LabelMap:
    """The label map in a file.

    Structures are in the order of their values, after the background, which is value 0 (or the entry called
    background) and need not be mentioned.

    Raises:
        UserError: no such file, or none of the forms that are read.
    """
    if file.suffix.lower() in (".csv", ".tsv"):
        rows = read_table(file, needed=("index", "name"))
        return _checked(file, [(row["index"], row["name"]) for row in rows])
    return label_map_of(read_json(file), file)


def read_json(file: Path) -> Mapping[str, Any]:
    """A JSON object.

    Raises:
        UserError: no such file, or something else in it.
    """
    content = documents.read_json(file)
    if not isinstance(content, dict):
        raise UserError(f"{file}: holds a {type(content).__name__}, expected an object in braces")
    return content


def label_map_of(content: Mapping[str, Any], file: Path) -> LabelMap:
    """The label map in the content of a JSON file.

    Raises:
        UserError: it is none; regions and ignored values, as nnU-Net knows them, are refused.
    """
    entries = content.get("labels", content)
    if isinstance(entries, dict) and set(entries) == {"names", "values"}:
        with reading(file, "holds no label map", f"expected {_FORMS}"):
            return LabelMap.from_json(entries)
    if not isinstance(entries, dict) or not entries:
        raise UserError(f"{file}: found no label map; expected {_FORMS}")
    several = [name for name, value in entries.items() if isinstance(value, list)]
    if several:
        raise UserError(
            f"{file}: {', '.join(several)} stand for several values each (regions); expected one value per structure: "
            "write the labels so that every voxel has one structure"
        )
    by_value = all(isinstance(name, str) for name in entries.values())
    return _checked(file, [(key, name) if by_value else (name, key) for key, name in entries.items()])


def _checked(file: Path, pairs: list[tuple[Any, Any]]) -> LabelMap:
    with reading(file, "the values of labels are whole numbers", f"expected {_FORMS}"):
        entries = sorted((int(value), str(name)) for value, name in pairs)
    ignored = [name for _, name in entries if name == "ignore"]
    if ignored:
        raise UserError(f"{file}: has a label 'ignore', which is not supported; take these voxels to be background")
    background = [entry for entry in entries if entry[0] == 0] or [
        entry for entry in entries if entry[1].lower() == "background"
    ]
    first = background[0] if background else (0, "background")
    ordered = [first, *(entry for entry in entries if entry != first)]
    with reading(file, "holds no label map", f"expected {_FORMS}"):
        return LabelMap(tuple(name for _, name in ordered), tuple(value for value, _ in ordered))
