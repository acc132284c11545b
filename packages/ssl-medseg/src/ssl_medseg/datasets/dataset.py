"""Represent a data set: its cases, each with an image, an optional label and a patient."""

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
    """One volume of a data set.

    Attributes:
        name: Name of the case, unique in the data set.
        patient: Patient of the case; all cases of a patient are in the same part of a split.
        image: File of the image, or of each of its channels.
        label: File of the label, if there is one. The split decides whether training may open it.
        listed: Part in which the data set itself lists the case: ``training``, ``validation``, ``test`` or
            ``unlabelled``; empty if there is no list.
        phase: ED or ES of a heart, if a table, the name or ACDC's Info.cfg states it; else empty.
    """

    name: str
    patient: str
    image: ImageFile
    label: Path | None = None
    listed: str = ""
    phase: str = ""

    @property
    def is_labelled(self) -> bool:
        """Whether the case has a label and the data set does not list it as unlabelled."""
        return self.label is not None and self.listed != "unlabelled"


@dataclass(frozen=True)
class DataSet:
    """Cases with their label map.

    Attributes:
        name: Name of the data set, without its path.
        root: Folder of the data set; paths are shown relative to it.
        cases: Cases in a fixed order.
        labels: Names and values of the structures.
        layout: Layout of the files: ``decathlon``, ``nnunet``, ``bids``, ``folders`` or ``csv``.
        notes: Warnings about its files, as sentences.
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
        """Names of all cases."""
        return tuple(case.name for case in self.cases)

    @cached_property
    def channels(self) -> tuple[str, ...]:
        """Names of the channels of the images, in order; ``image`` for a single unnamed channel."""
        names = self.cases[0].image.channel_names if self.cases else ("",)
        return (names[0] or UNNAMED,) if len(names) == 1 else names

    @cached_property
    def channel_numbers(self) -> tuple[int, ...]:
        """Numbers of the channels in the files, in order; empty if they have none or the cases differ."""
        variants = {tuple(channel.number for channel in case.image.channels) for case in self.cases}
        numbers = variants.pop() if len(variants) == 1 else ()
        return tuple(number for number in numbers if number is not None) if None not in numbers else ()

    def with_channels(self, names: Sequence[str], numbers: Sequence[int] = ()) -> DataSet:
        """Return the data set with the channels that a model was trained with, in its order; see `fit_channels`.

        Raises:
            UserError: The images lack a channel, or their channels are not named.
        """
        cases = tuple(replace(case, image=fit_channels(case.image, names, numbers)) for case in self.cases)
        return replace(self, cases=cases)

    @cached_property
    def patients(self) -> dict[str, tuple[str, ...]]:
        """Patient -> names of the patient's cases."""
        patients: dict[str, tuple[str, ...]] = {}
        for case in self.cases:
            patients[case.patient] = (*patients.get(case.patient, ()), case.name)
        return patients

    @cached_property
    def labelled(self) -> tuple[str, ...]:
        """Names of the cases that have a label."""
        return tuple(case.name for case in self.cases if case.label is not None)

    def case(self, name: str) -> Case:
        """Return a case by name.

        Raises:
            UserError: There is no such case.
        """
        try:
            return self._by_name[name]
        except KeyError:
            match = difflib.get_close_matches(name, self.names, n=1, cutoff=0.6)
            hint = f"; did you mean {match[0]}?" if match else ""
            raise UserError(f"{self.name} has no case {name!r} among its {len(self)} cases{hint}") from None

    def select(self, names: Iterable[str]) -> tuple[Case, ...]:
        """Return several cases by name, in the given order.

        Raises:
            UserError: There is no case with one of the names.
        """
        return tuple(self.case(name) for name in names)

    def shown(self, path: Path) -> str:
        """Return a path relative to the folder of the data set, for messages and reports."""
        return path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else path.name

    @cached_property
    def _by_name(self) -> dict[str, Case]:
        return {case.name: case for case in self.cases}
