"""Cases of a data set: an image, optionally a label, and the patient they show."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from contrastive_core.errors import UserError
from ssl_medseg.datasets.channels import UNNAMED, fit_channels
from ssl_medseg.io.label_map import LabelMap
from ssl_medseg.io.volume import ImageFile


@dataclass(frozen=True)
class Case:
    """One volume.

    Attributes:
        name: Name of the case, unique in the data set.
        patient: Patient the case shows; all cases of a patient are in one part of a split.
        image: File of the image, or of each of its channels.
        label: File of the label, if there is one. Whether training may open it is decided by the split.
        listed: Part of the data set's own list (``training``, ``test``, ``unlabelled``, a word of the CSV file's column
            split); empty where there is no list.
    """

    name: str
    patient: str
    image: ImageFile
    label: Path | None = None
    listed: str = ""


@dataclass(frozen=True)
class DataSet:
    """Cases and the meaning of their labels.

    Attributes:
        name: Name of the data set; no path.
        root: Folder of the data set; paths are shown relative to it.
        cases: Cases in a fixed order.
        labels: Names and values of the structures.
        layout: Layout of the files: ``decathlon``, ``nnunet``, ``bids``, ``folders`` or ``csv``.
        notes: Findings about its files that do not stop anything, as sentences.
    """

    name: str
    root: Path
    cases: tuple[Case, ...]
    labels: LabelMap
    layout: str
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Number of cases."""
        return len(self.cases)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The names of all cases."""
        return tuple(case.name for case in self.cases)

    @cached_property
    def channels(self) -> tuple[str, ...]:
        """Names of the channels of every image, in order: ``image`` for one that nobody names."""
        names = self.cases[0].image.channel_names if self.cases else ("",)
        return (names[0] or UNNAMED,) if len(names) == 1 else names

    @cached_property
    def channel_numbers(self) -> tuple[int, ...]:
        """Numbers of the channels in the files, in their order; empty where they have none or cases differ."""
        found = {tuple(channel.number for channel in case.image.channels) for case in self.cases}
        numbers = found.pop() if len(found) == 1 else ()
        return tuple(number for number in numbers if number is not None) if None not in numbers else ()

    def with_channels(self, names: Sequence[str], numbers: Sequence[int] = ()) -> DataSet:
        """The same cases with the channels that a model was trained with, in its order; `fit_channels` says how.

        Raises:
            UserError: They do not have them, or do not say which of their channels is which.
        """
        cases = tuple(replace(case, image=fit_channels(case.image, names, numbers)) for case in self.cases)
        return replace(self, cases=cases)

    @cached_property
    def patients(self) -> dict[str, tuple[str, ...]]:
        """Patient -> the names of their cases."""
        found: dict[str, tuple[str, ...]] = {}
        for case in self.cases:
            found[case.patient] = (*found.get(case.patient, ()), case.name)
        return found

    @cached_property
    def labelled(self) -> tuple[str, ...]:
        """The names of the cases that have a label."""
        return tuple(case.name for case in self.cases if case.label is not None)

    def case(self, name: str) -> Case:
        """The case of a name.

        Raises:
            UserError: there is none.
        """
        try:
            return self._by_name[name]
        except KeyError:
            match = difflib.get_close_matches(name, self.names, n=1, cutoff=0.6)
            hint = f"; did you mean {match[0]}?" if match else ""
            raise UserError(f"{self.name}: there is no case {name!r} among its {len(self)} cases{hint}") from None

    def select(self, names: Iterable[str]) -> tuple[Case, ...]:
        """The cases of some names, in their order.

        Raises:
            UserError: there is no such case.
        """
        return tuple(self.case(name) for name in names)

    def shown(self, path: Path) -> str:
        """A path relative to the data set's folder, for messages and reports."""
        return path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else path.name

    @cached_property
    def _by_name(self) -> dict[str, Case]:
        return {case.name: case for case in self.cases}
