"""Which time point of each case's images is meant, from a table."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from contrastive_core.errors import UserError
from ssl_medseg.data.layouts.entries import Listing
from ssl_medseg.data.tables import read_table, whole_number


def with_frames(listing: Listing, file: Path) -> Listing:
    """The listing with the frames of a table, see :func:`read_frames`; other cases stay."""
    frames = read_frames(file, [entry.name for entry in listing.entries], owner=listing.name)
    entries = [
        replace(entry, image=replace(entry.image, frame=frames.get(entry.name, entry.image.frame)))
        for entry in listing.entries
    ]
    return replace(listing, entries=entries)


def read_frames(file: Path, names: Sequence[str], *, owner: str) -> dict[str, int]:
    """Case -> frame, of a CSV file that has the columns ``case`` and ``frame``.

    Args:
        file: the table.
        names: all cases that there are.
        owner: what has them, for errors.

    Raises:
        UserError: no such table, a case that is not there or is there twice, a frame that is no number.
    """
    frames: dict[str, int] = {}
    for row in read_table(file, needed=("case", "frame")):
        name = row["case"]
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            raise UserError(
                f"{file}: names the case {name!r}, which {owner} does not have"
                + (f"; did you mean {near[0]}?" if near else "; correct or remove the row")
            )
        if name in frames:
            raise UserError(f"{file}: names the case {name} twice, expected one frame of each case; remove a row")
        frames[name] = whole_number(row, "frame", file)
    return frames
