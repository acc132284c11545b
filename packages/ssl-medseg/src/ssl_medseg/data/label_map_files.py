"""Label maps as people and other programs write them: JSON of several kinds, CSV and TSV."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from contrastive_core.errors import UserError
from ssl_medseg.data.label_map import LabelMap
from ssl_medseg.data.tables import read_table

_FORMS = (
    'JSON {"0": "background", "1": "RV"} or {"background": 0, "RV": 1}, alone or under "labels", or a CSV or TSV file '
    "with the columns index and name"
)


def read_label_map(file: Path) -> LabelMap:
    """The label map in a file.

    Structures are in the order of their values, after the background, which is value 0 (or the entry called
    background) and need not be mentioned.

    Raises:
        UserError: no such file, or none of the forms that are read.
    """
    if file.suffix.lower() in (".csv", ".tsv"):
        rows = read_table(file, needed=("index", "name"))
        return _checked(file, [(row["index"], row["name"]) for row in rows])
    return label_map_of(read_json(file), file)


def read_json(file: Path) -> Mapping[str, Any]:
    """A JSON object.

    Raises:
        UserError: no such file, or something else in it.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}); expected a JSON file") from error
    except ValueError as error:
        raise UserError(f"{file}: is not JSON in UTF-8 ({error}); correct it at that place") from error
    if not isinstance(content, dict):
        raise UserError(f"{file}: holds a {type(content).__name__}, expected an object in braces")
    return content


def label_map_of(content: Mapping[str, Any], file: Path) -> LabelMap:
    """The label map in the content of a JSON file.

    Raises:
        UserError: it is none; regions and ignored values, as nnU-Net knows them, are refused.
    """
    entries = content.get("labels", content)
    if isinstance(entries, dict) and set(entries) == {"names", "values"}:
        return LabelMap.from_json(entries)
    if not isinstance(entries, dict) or not entries:
        raise UserError(f"{file}: found no label map; expected {_FORMS}")
    several = [name for name, value in entries.items() if isinstance(value, list)]
    if several:
        raise UserError(
            f"{file}: {', '.join(several)} stand for several values each (regions); expected one value per structure: "
            "write the labels so that every voxel has one structure"
        )
    by_value = all(isinstance(name, str) for name in entries.values())
    return _checked(file, [(key, name) if by_value else (name, key) for key, name in entries.items()])


def _checked(file: Path, pairs: list[tuple[Any, Any]]) -> LabelMap:
    try:
        entries = sorted((int(value), str(name)) for value, name in pairs)
    except (TypeError, ValueError) as error:
        raise UserError(f"{file}: the values of labels are whole numbers ({error}); expected {_FORMS}") from error
    ignored = [name for _, name in entries if name == "ignore"]
    if ignored:
        raise UserError(f"{file}: has a label 'ignore', which is not supported; take these voxels to be background")
    background = [entry for entry in entries if entry[0] == 0] or [
        entry for entry in entries if entry[1].lower() == "background"
    ]
    first = background[0] if background else (0, "background")
    ordered = [first, *(entry for entry in entries if entry != first)]
    try:
        return LabelMap(tuple(name for _, name in ordered), tuple(value for value, _ in ordered))
    except UserError as error:
        raise UserError(f"{file}: {error}") from error
