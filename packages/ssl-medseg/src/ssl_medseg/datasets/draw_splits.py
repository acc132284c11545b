"""Make splits: from the labels that exist, by random draws, or from named patients."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from contrastive_core.errors import UserError
from contrastive_core.rng import derive, permutation
from contrastive_core.text import several, some_of
from contrastive_core.training.names import check_file_name
from ssl_medseg.datasets.dataset import Case, DataSet
from ssl_medseg.datasets.splits import Split

_FROM = 4
"""Labelled patients from which on one in four is held out for validation."""


def split_by_labels(
    dataset: DataSet, *, labelled: Sequence[str] = (), validation: Sequence[str] = ()
) -> tuple[Split, list[str]]:
    """Labelled, validation and unlabelled cases of a data set, by patient.

    Cases that the data set lists as test are for test. Patients that are not named, and have no label for all of their
    volumes, are unlabelled.

    Args:
        dataset: the data set.
        labelled: patients whose labels may be seen; empty: all whose volumes have labels.
        validation: patients to validate on; empty: the last quarter of the labelled ones where there are four or more,
            none below that.

    Returns:
        The split, and how it came about in words.

    Raises:
        UserError: unknown patients, none labelled, or none unlabelled.
    """
    test = {case.patient for case in dataset.cases if case.listed == "test"}
    known = [patient for patient in dataset.patients if patient not in test]
    full = [p for p in known if all(dataset.case(name).label is not None for name in dataset.patients[p])]
    for patient in (*labelled, *validation):
        if patient not in known:
            raise UserError(f"{dataset.name}: no patient {patient!r} outside its test part; it has {some_of(known)}")
    chosen = list(labelled or [p for p in full if p not in validation])
    reasons = [f"labelled: {some_of(chosen)}" + ("" if labelled else ", the patients whose volumes all have labels")]
    held = list(validation)
    if not held and not labelled and len(chosen) >= _FROM:
        held = chosen[-(len(chosen) // _FROM) :]
        chosen = chosen[: -len(held)]
        reasons = [f"labelled: {some_of(chosen)}, the patients whose volumes all have labels but those for validation"]
    if not chosen:
        raise UserError(
            f"{dataset.name}: no patient has labels for all volumes, so there is nothing to learn from; label one"
        )
    reasons.append(
        f"validation: {some_of(held)}, on which training is scored"
        if held
        else f"validation: none, for {len(chosen)} labelled patient(s) are too few to give one away; the last step is "
        "kept"
    )
    rest = [patient for patient in known if patient not in chosen and patient not in held]
    if not rest:
        raise UserError(
            f"{dataset.name}: every patient has labels, so there are no unlabelled volumes to learn from; name the "
            "labelled ones with --labelled, give a --split, or use `ssl-medseg train`"
        )
    reasons.append(f"unlabelled: {len(rest)} patients, whose labels, if there are any, are not opened")

    def names(patients: Sequence[str]) -> tuple[str, ...]:
        return tuple(name for patient in patients for name in dataset.patients[patient])

    return Split(names(chosen), names(held), names(sorted(test)), names(rest)), reasons


@dataclass(frozen=True)
class Combination:
    """Patients by name.

    Args:
        labelled: those trained on with their labels.
        validation: those that settings and the best step are chosen on.
    """

    labelled: tuple[str, ...]
    validation: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pool:
    """The cases that splits are made of, by patient.

    Attributes:
        name: of the data set.
        cases: patient -> their cases, in the data set's order.
    """

    name: str
    cases: Mapping[str, Sequence[Case]]

    @classmethod
    def of(cls, dataset: DataSet, cases: Iterable[Case]) -> Pool:
        """The pool of some cases."""
        by_patient: dict[str, list[Case]] = {}
        for case in cases:
            by_patient.setdefault(case.patient, []).append(case)
        return cls(dataset.name, by_patient)

    @property
    def fully_labelled(self) -> list[str]:
        """Patients all of whose cases have labels, sorted."""
        return sorted(p for p, cases in self.cases.items() if all(case.label is not None for case in cases))

    def names(self, patients: Iterable[str]) -> tuple[str, ...]:
        """The names of the cases of some patients, in the order of the data set."""
        wanted = set(patients)
        return tuple(case.name for patient, cases in self.cases.items() if patient in wanted for case in cases)

    def split(
        self,
        labelled: Iterable[str],
        validation: Iterable[str],
        test: Iterable[str],
        unlabelled: Iterable[str],
        **how: Any,
    ) -> Split:
        """The split of these patients; who is in an earlier part is left out of the unlabelled ones."""
        labelled, validation, test = tuple(labelled), tuple(validation), tuple(test)
        rest = set(unlabelled).difference(labelled, validation, test)
        return Split(self.names(labelled), self.names(validation), self.names(test), self.names(rest), settings=how)


@dataclass(frozen=True)
class Draws:
    """How patients are drawn.

    Attributes:
        labelled: numbers of labelled patients; None: those of 1, 2 and 8 that the data allow.
        draws: choices of each.
        validation: number of patients for validation, the same for all draws.
        test: number of patients for test, beside those in `held_out`.
        held_out: patients for test by name.
        unlabelled: the patients that may be unlabelled ones; empty: all the rest.
        seed: of the choices.
    """

    labelled: tuple[int, ...] | None = None
    draws: int = 5
    validation: int = 2
    test: int = 0
    held_out: tuple[str, ...] = ()
    unlabelled: tuple[str, ...] = field(default=())
    seed: int = 0


def draw(pool: Pool, how: Draws) -> dict[str, Split]:
    """Splits by drawing: name -> split.

    First test and validation patients are drawn, the same for all; then every draw is a place in one random order of
    the other patients, as far from the others as can be: the smaller choice of a draw is part of its larger one, and
    the draws of a size have no patient in common where there are enough patients. ``all-labelled`` is the upper bound:
    every label that is not for validation or test.

    Raises:
        UserError: more patients are asked for than there are.
    """
    available = [patient for patient in pool.fully_labelled if patient not in how.held_out]
    order = [available[i] for i in permutation(derive(how.seed, "held out"), len(available)).tolist()]
    test = [*how.held_out, *order[: how.test]]
    validation = order[how.test : how.test + how.validation]
    rest = sorted(order[how.test + how.validation :])
    _enough(pool, how, len(available), len(rest))
    sizes = tuple(n for n in (1, 2, 8) if n <= len(rest)) if how.labelled is None else how.labelled
    order = [rest[i] for i in permutation(derive(how.seed, "labelled"), len(rest)).tolist()]
    step = max(1, len(order) // how.draws)
    unlabelled = how.unlabelled or tuple(pool.cases)
    splits = {}
    for size in sorted(sizes):
        for number in range(how.draws):
            chosen = [order[(number * step + i) % len(order)] for i in range(size)]
            settings = {"seed": how.seed, "draw": number + 1}
            splits[f"{size}-labelled-draw{number + 1}"] = pool.split(chosen, validation, test, unlabelled, **settings)
    splits["all-labelled"] = pool.split(rest, validation, test, unlabelled, seed=how.seed)
    return splits


def combine(
    pool: Pool, combinations: Mapping[str, Combination], *, test: Sequence[str], unlabelled: Sequence[str]
) -> dict[str, Split]:
    """Splits of named patients: name -> split. Labelled and validation patients are left out of the unlabelled ones.

    Raises:
        UserError: a patient who is not there, without labels where these are needed, or in two parts.
    """
    splits = {}
    for name, chosen in combinations.items():
        check_file_name(name, what="combination", source="--combinations")
        needed = (*chosen.labelled, *chosen.validation)
        bare = [patient for patient in needed if patient in pool.cases and patient not in pool.fully_labelled]
        if bare:
            raise UserError(f"{pool.name}: combination {name} needs labels of {', '.join(bare)}, who have none")
        if not chosen.labelled:
            raise UserError(f"combination {name} names no labelled patient, expected at least one")
        rest = unlabelled or tuple(pool.cases)
        splits[name] = pool.split(chosen.labelled, chosen.validation, test, rest, combination=name)
    return splits


def absent(pool: Pool, patients: Iterable[str]) -> list[str]:
    """Those of some patients who have no case in the pool, sorted."""
    return sorted(set(patients) - set(pool.cases))


def _enough(pool: Pool, how: Draws, available: int, rest: int) -> None:
    largest = max(how.labelled or (1,))
    if how.draws < 1 or how.validation < 0 or how.test < 0 or min(how.labelled or (1,)) < 1:
        raise UserError("draws and numbers of labelled patients are at least 1, validation and test at least 0")
    if rest < largest:
        raise UserError(
            f"{pool.name}: has {several(available, 'patient')} with labels for all their volumes; {how.test} for test "
            f"and {how.validation} for validation leave {max(rest, 0)}, fewer than the {largest} labelled ones asked "
            "for. Ask for fewer, or say how patients are told from the names of cases: --patient-pattern or --patients"
        )
    if rest < how.draws:
        raise UserError(f"{pool.name}: {how.draws} draws were asked for, and {rest} patients are left to draw from")
