"""Whose volume a case is: read from its name by a stated rule, or said by the user."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from contrastive_core.errors import UserError
from ssl_medseg.data.tables import read_table

RULE = (
    "a name that begins with sub-XX (BIDS) is of that subject; otherwise what is left of the name after taking off "
    "endings such as _frame01, _ED, _ES, _time2, _ses-1, _visit2, _run1, _scan1"
)
_SUBJECT = re.compile(r"(sub-[A-Za-z0-9]+)(?=_|$)")
_ENDING = re.compile(
    r"[_\-.](?:(?:frame|time|timepoint|tp|phase|ses|session|visit|run|scan|acq|rep|t)[_\-]?\d+|ed|es|4d)$",
    re.IGNORECASE,
)


class PatientRule:
    """Finds the patient of a case.

    Args:
        pattern: a regular expression searched in the name of the case; its first group, or all of it, is the patient.
        table: a CSV or TSV file with the columns ``case`` and ``patient``.

    Raises:
        UserError: not a regular expression, no such file or columns.
    """

    def __init__(self, *, pattern: str | None = None, table: Path | None = None) -> None:
        try:
            self._pattern = None if pattern is None else re.compile(pattern)
        except re.error as error:
            raise UserError(f"patient pattern {pattern!r} is no regular expression: {error}") from error
        self._table: Mapping[str, str] | None = None
        if table is not None:
            rows = read_table(table, needed=("case", "patient"))
            self._table, self._file = {row["case"]: row["patient"] for row in rows}, table.name

    def __call__(self, name: str) -> str:
        """The patient of the case of this name.

        Raises:
            UserError: the pattern is not in the name, or the table does not list it.
        """
        if self._table is not None:
            if not self._table.get(name):
                raise UserError(f"{self._file}: says no patient for the case {name}; add a row")
            return self._table[name]
        if self._pattern is not None:
            found = self._pattern.search(name)
            if found is None:
                raise UserError(f"patient pattern {self._pattern.pattern!r}: not found in the case {name}")
            return found[1] if self._pattern.groups else found[0]
        return patient_of(name)


def patient_of(name: str) -> str:
    """The patient of a case by the rule of this module, `RULE`.

    >>> [patient_of(name) for name in ("patient002_frame01", "sub-07_ses-1_T2w", "Case00", "P3_ED", "prostate_00")]
    ['patient002', 'sub-07', 'Case00', 'P3', 'prostate_00']
    """
    subject = _SUBJECT.match(name)
    if subject is not None:
        return subject[1]
    shorter = _ENDING.sub("", name)
    while shorter != name:
        name, shorter = shorter, _ENDING.sub("", shorter)
    return name
