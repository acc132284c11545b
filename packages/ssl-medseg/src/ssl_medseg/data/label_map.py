"""Which values a data set's label files hold, and what they mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contrastive_core.errors import UserError

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
    >>> heart.to_values(np.array([0, 2, 1], dtype=np.uint8))
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

    def to_values(self, classes: NDArray[Any]) -> NDArray[Any]:
        """Classes as the values of label files again, in the smallest of uint8, int16 and int32 that holds them all."""
        kinds = (np.uint8, np.int16, np.int32)
        kind = next(k for k in kinds if all(np.iinfo(k).min <= value <= np.iinfo(k).max for value in self.values))
        values: NDArray[Any] = np.asarray(self.values, dtype=kind)[classes]
        return values

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
