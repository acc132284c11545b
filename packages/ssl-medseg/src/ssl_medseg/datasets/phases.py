"""Determine the cardiac phase of a case, end-diastole (ED) or end-systole (ES), if a table or file states it."""

from __future__ import annotations

import re
from pathlib import Path

from contrastive_core.errors import UserError
from ssl_medseg.io.volume import ImageFile

_PHASES = {
    "ED": re.compile(r"(ed|end[\s_-]?diastol(e|ic)|diastol(e|ic))", re.IGNORECASE),
    "ES": re.compile(r"(es|end[\s_-]?systol(e|ic)|systol(e|ic))", re.IGNORECASE),
}
_ENDING = re.compile(r"[_\-. ](ED|ES)$", re.IGNORECASE)
_FRAME = re.compile(r"frame[_-]?(\d+)", re.IGNORECASE)
_STATED = re.compile(r"^\s*(ED|ES)\s*:\s*(\d+)\s*$", re.MULTILINE)
_LARGEST = 1 << 16


def phase_in_table(cell: str, *, source: Path) -> str:
    """Return the phase in a cell of a table; empty for an empty cell.

    >>> phase_in_table("end-diastole", source=Path("cases.csv"))
    'ED'

    Raises:
        UserError: The cell contains something else.
    """
    if not cell:
        return ""
    for phase, pattern in _PHASES.items():
        if pattern.fullmatch(cell):
            return phase
    raise UserError(f"{source}: found the phase {cell!r}; expected ED, ES or an empty cell")


def phase_of(name: str, image: ImageFile) -> str:
    """Return the phase of a case from the end of its name (``_ED``) or from ACDC's Info.cfg; empty if unknown.

    Info.cfg is a file beside the image that states the frames of both phases, counted from 1 like the frames in names
    such as ``patient001_frame12``.
    """
    ending = _ENDING.search(name)
    if ending is not None:
        return ending[1].upper()
    file = image.path.parent / "Info.cfg"
    match = _FRAME.search(name)
    frame = int(match[1]) if match is not None else None if image.frame is None else image.frame + 1
    if frame is None or not file.is_file() or file.stat().st_size > _LARGEST:
        return ""
    phases: dict[int, str] = {int(number): phase for phase, number in _STATED.findall(file.read_text(errors="replace"))}
    return phases.get(frame, "")
