"""A CSV file with a row for every case."""

from __future__ import annotations

from pathlib import Path

from contrastive_core.errors import UserError
from ssl_medseg.data.cases import ImageFile
from ssl_medseg.data.files import stem
from ssl_medseg.data.layouts.entries import Entry, Listing
from ssl_medseg.data.layouts.folders import UNLABELLED, own_label_map
from ssl_medseg.data.options import DataOptions
from ssl_medseg.data.tables import read_table, whole_number


def list_table(file: Path, options: DataOptions) -> Listing:
    """The rows of a CSV or TSV file with the column ``image`` and, as wanted, ``case``, ``patient``, ``label``,
    ``split``, ``channel`` and ``frame``.

    Paths are relative to the file, or absolute. A case is called as its image file where no column says so. An empty
    label needs ``unlabelled`` or ``test`` in the column split, or the caller's consent. The label map lies beside the
    file as labels.json, labels.csv or labels.tsv.

    Raises:
        UserError: the file is no such table.
    """  # noqa: D205 - the columns do not fit into one line
    entries = [_entry(row, file, options) for row in read_table(file, needed=("image",))]
    return Listing(file.stem, file.parent, "csv", entries, own_label_map(file.parent))


def _entry(row: dict[str, str], file: Path, options: DataOptions) -> Entry:
    if not row["image"]:
        raise UserError(f"{file}: found a row without an image ({row}), expected a path in each; remove the row")
    path = file.parent / row["image"]
    name = row.get("case") or stem(path)
    image = ImageFile(
        path,
        channel=whole_number(row, "channel", file) if row.get("channel") else options.channel,
        frame=whole_number(row, "frame", file) if row.get("frame") else options.frame,
    )
    part = row.get("split", "").lower()
    listed = "unlabelled" if part in UNLABELLED else part
    label = file.parent / row["label"] if row.get("label") else None
    return Entry(name, image, label, listed, listed in ("unlabelled", "test"), row.get("patient") or None)
