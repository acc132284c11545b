"""Make splits from existing labels, by random draws, or from named patients."""

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
"""Smallest number of labelled patients for which a quarter is held out for validation."""


def split_by_labels(
    dataset: DataSet, *, labelled: Sequence[str] = (), validation: Sequence[str] = ()
) -> tuple[Split, list[str]]:
    """Split a data set by patient into labelled, validation and unlabelled cases.

    Cases that the data set lists as test cases are test cases. Patients that are not named and lack a label for some of
    their volumes are unlabelled.

    Args:
        dataset: Data set.
        labelled: Labelled patients; if empty, all patients whose volumes all have labels.
        validation: Validation patients; if empty, those that the data set lists for validation, or otherwise the last
            quarter of the labelled ones if there are four or more.

    Returns:
        The split, and an explanation of it.

    Raises:
        UserError: A patient does not exist, or there are no labelled or no unlabelled patients.
    """
    test = {case.patient for case in dataset.cases if case.listed == "test"}
    candidates = [patient for patient in dataset.patients if patient not in test]
    full = [p for p in candidates if all(dataset.case(name).is_labelled for name in dataset.patients[p])]
    for patient in (*labelled, *validation):
        if patient not in candidates:
            raise UserError(
                f"{dataset.name} has no patient {patient!r} outside its test part; its patients are "
                f"{some_of(candidates)}"
            )
    own_validation = [
        p for p in candidates if any(dataset.case(name).listed == "validation" for name in dataset.patients[p])
    ]
    validation = validation or [patient for patient in own_validation if patient not in labelled]
    labelled_patients = list(labelled or [p for p in full if p not in validation])
    reasons = [
        f"labelled: {some_of(labelled_patients)}" + ("" if labelled else ", the patients whose volumes all have labels")
    ]
    validation_patients = list(validation)
    if not validation_patients and not labelled and len(labelled_patients) >= _FROM:
        validation_patients = labelled_patients[-(len(labelled_patients) // _FROM) :]
        labelled_patients = labelled_patients[: -len(validation_patients)]
        reasons = [f"labelled: {some_of(labelled_patients)}, all other patients whose volumes all have labels"]
    if not labelled_patients:
        raise UserError(
            f"{dataset.name}: no patient has labels for all volumes; training needs at least one labelled patient"
        )
    missing = "none was named" if labelled else f"fewer than {_FROM} patients are labelled"
    reasons.append(
        f"validation: {some_of(validation_patients)}, used to score the training"
        if validation_patients
        else f"validation: none, because {missing}; the last step is kept"
    )
    rest = [
        patient for patient in candidates if patient not in labelled_patients and patient not in validation_patients
    ]
    if not rest:
        raise UserError(
            f"{dataset.name}: every patient has labels, so there are no unlabelled volumes to learn from; name the "
            "labelled patients with --labelled, pass a --split, or use `ssl-medseg train`"
        )
    reasons.append(f"unlabelled: {several(len(rest), 'patient')}; their labels, if any, are not opened")

    def names(patients: Sequence[str]) -> tuple[str, ...]:
        return tuple(name for patient in patients for name in dataset.patients[patient])

    return Split(names(labelled_patients), names(validation_patients), names(sorted(test)), names(rest)), reasons


@dataclass(frozen=True)
class Combination:
    """Named patients of a split.

    Args:
        labelled: Patients whose labels are used for training.
        validation: Patients used to choose settings and the best step.
    """

    labelled: tuple[str, ...]
    validation: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pool:
    """Cases available for splits, by patient.

    Attributes:
        name: Name of the data set.
        cases: Patient -> the patient's cases, in the order of the data set.
    """

    name: str
    cases: Mapping[str, Sequence[Case]]

    @classmethod
    def of(cls, dataset: DataSet, cases: Iterable[Case]) -> Pool:
        """Create a pool from some cases."""
        by_patient: dict[str, list[Case]] = {}
        for case in cases:
            by_patient.setdefault(case.patient, []).append(case)
        return cls(dataset.name, by_patient)

    @property
    def fully_labelled(self) -> list[str]:
        """Patients whose cases all have labels, sorted."""
        return sorted(p for p, cases in self.cases.items() if all(case.is_labelled for case in cases))

    def names(self, patients: Iterable[str]) -> tuple[str, ...]:
        """Return the names of the cases of some patients, in the order of the data set."""
        members = set(patients)
        return tuple(case.name for patient, cases in self.cases.items() if patient in members for case in cases)

    def split(
        self,
        labelled: Iterable[str],
        validation: Iterable[str],
        test: Iterable[str],
        unlabelled: Iterable[str],
        **how: Any,
    ) -> Split:
        """Create a split from patients; those in another part are removed from the unlabelled ones."""
        labelled, validation, test = tuple(labelled), tuple(validation), tuple(test)
        rest = set(unlabelled).difference(labelled, validation, test)
        return Split(self.names(labelled), self.names(validation), self.names(test), self.names(rest), settings=how)


@dataclass(frozen=True)
class Draws:
    """Settings of the random draws.

    Attributes:
        labelled: Numbers of labelled patients; None for 1, 2 and 8, as far as the data allow.
        draws: Number of draws for each number of labelled patients.
        validation: Number of validation patients, the same for all draws.
        test: Number of test patients in addition to `held_out`.
        held_out: Named test patients.
        unlabelled: Patients that may be unlabelled; if empty, all others.
        seed: Random seed.
    """

    labelled: tuple[int, ...] | None = None
    draws: int = 5
    validation: int = 2
    test: int = 0
    held_out: tuple[str, ...] = ()
    unlabelled: tuple[str, ...] = field(default=())
    seed: int = 0


def draw(pool: Pool, how: Draws) -> dict[str, Split]:
    """Draw splits at random; return name -> split.

    Test and validation patients are drawn first and shared by all splits. The other patients are put into a random
    order, in which each draw starts at a different position, spaced as evenly as possible. Therefore, smaller draws are
    subsets of larger ones with the same number, and draws of the same size are disjoint if there are enough patients.
    ``all-labelled`` is the upper bound: it uses all labels outside validation and test.

    Raises:
        UserError: There are not enough patients.
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
            labelled = [order[(number * step + i) % len(order)] for i in range(size)]
            settings = {"seed": how.seed, "draw": number + 1}
            splits[f"{size}-labelled-draw{number + 1}"] = pool.split(labelled, validation, test, unlabelled, **settings)
    splits["all-labelled"] = pool.split(rest, validation, test, unlabelled, seed=how.seed)
    return splits


def combine(
    pool: Pool, combinations: Mapping[str, Combination], *, test: Sequence[str], unlabelled: Sequence[str]
) -> dict[str, Split]:
    """Make splits from named patients; return name -> split.

    Labelled and validation patients are removed from the unlabelled ones.

    Raises:
        UserError: A patient does not exist, lacks required labels, or is in two parts.
    """
    splits = {}
    for name, combination in combinations.items():
        check_file_name(name, what="combination", source="--combinations")
        patients = (*combination.labelled, *combination.validation)
        bare = [patient for patient in patients if patient in pool.cases and patient not in pool.fully_labelled]
        if bare:
            raise UserError(f"{pool.name}: combination {name} needs labels of {', '.join(bare)}, which have none")
        if not combination.labelled:
            raise UserError(f"combination {name} has no labelled patient; expected at least one")
        rest = unlabelled or tuple(pool.cases)
        splits[name] = pool.split(combination.labelled, combination.validation, test, rest, combination=name)
    return splits


def absent(pool: Pool, patients: Iterable[str]) -> list[str]:
    """Return the patients that have no case in the pool, sorted."""
    return sorted(set(patients) - set(pool.cases))


def _enough(pool: Pool, how: Draws, available: int, rest: int) -> None:
    largest = max(how.labelled or (1,))
    if how.draws < 1 or how.validation < 0 or how.test < 0 or min(how.labelled or (1,)) < 1:
        raise UserError(
            f"draws is {how.draws}, n_labelled is {how.labelled}, n_validation is {how.validation} and n_test is "
            f"{how.test}; expected draws and n_labelled of at least 1, and n_validation and n_test of at least 0"
        )
    if rest < largest:
        raise UserError(
            f"{pool.name} has {several(available, 'patient')} with labels for all volumes; {how.test} for test and "
            f"{how.validation} for validation leave {max(rest, 0)}, fewer than the {largest} labelled patients "
            "requested. Request fewer, or state how case names map to patients with --patient-pattern or --patients"
        )
    if rest < how.draws:
        raise UserError(
            f"{pool.name}: {how.draws} draws were requested, but only {several(rest, 'patient')} can be drawn; "
            "expected at most one draw per patient. Reduce --draws"
        )
