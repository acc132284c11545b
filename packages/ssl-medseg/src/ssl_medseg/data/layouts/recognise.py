"""Which layout a data set has, seen from what is there."""

from __future__ import annotations

from pathlib import Path

from contrastive_core.errors import UserError
from ssl_medseg.data.layouts.decathlon import list_decathlon
from ssl_medseg.data.layouts.entries import Listing
from ssl_medseg.data.options import DataOptions

_EXPECTED = "expected a folder with dataset.json (Medical Decathlon)"


def list_files(source: Path, options: DataOptions) -> Listing:
    """List the cases of a data set in whichever layout it has.

    Raises:
        UserError: there is no such data set, or none of a layout that is known.
    """
    file = source / "dataset.json" if source.is_dir() else source
    if not source.exists():
        raise UserError(f"{source}: there is no such file or folder; {_EXPECTED}")
    if file.suffix != ".json" or not file.is_file():
        raise UserError(f"{source}: {_EXPECTED}")
    return list_decathlon(file, options)
