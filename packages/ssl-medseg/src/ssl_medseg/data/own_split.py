"""A split without a file: who has a label is labelled, who has none is not."""

from __future__ import annotations

from collections.abc import Sequence

from contrastive_core.errors import UserError
from ssl_medseg.data.cases import DataSet
from ssl_medseg.data.splits import Split

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
            raise UserError(f"{dataset.name}: no patient {patient!r} outside its test part; it has {_some(known)}")
    chosen = list(labelled or [p for p in full if p not in validation])
    reasons = [f"labelled: {_some(chosen)}" + ("" if labelled else ", the patients whose volumes all have labels")]
    held = list(validation)
    if not held and not labelled and len(chosen) >= _FROM:
        held = chosen[-(len(chosen) // _FROM) :]
        chosen = chosen[: -len(held)]
        reasons = [f"labelled: {_some(chosen)}, the patients whose volumes all have labels but those for validation"]
    if not chosen:
        raise UserError(
            f"{dataset.name}: no patient has labels for all volumes, so there is nothing to learn from; label one"
        )
    reasons.append(
        f"validation: {_some(held)}, which choose the best step"
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


def _some(patients: Sequence[str]) -> str:
    return ", ".join(patients[:6]) + (f" and {len(patients) - 6} more" if len(patients) > 6 else "")
