"""Image folders and CSV manifests."""

from __future__ import annotations

import csv
from pathlib import Path

from contrastive_core.errors import UserError
from ssl_vision.data.decode import EXTENSIONS
from ssl_vision.data.image_set import FileImages

SPLITS = ("train", "val", "test")


def image_files(folder: Path) -> list[Path]:
    """All image files below a folder, hidden ones aside, sorted by their relative path on every file system."""
    found = [
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in EXTENSIONS
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def open_folder(root: Path, *, split: str) -> FileImages:
    """Open ``root/<split>/<class>/*``, ``root/<class>/*`` or a folder of images without classes.

    Images have classes if all of them lie in folders below the one opened; class names are those folders', sorted. A
    missing test split is looked for under ``val``.

    Raises:
        UserError: no images, or no such split.
    """
    folder = _split_folder(root, split)
    paths = image_files(folder)
    if not paths:
        listed = ", ".join(sorted(EXTENSIONS))
        raise UserError(f"{folder}: found no images, expected files ending in {listed}")
    tops = [path.relative_to(folder).parts[:-1][:1] for path in paths]
    if not all(tops):
        return FileImages(str(folder), paths)
    classes = sorted({top[0] for top in tops})
    index = {name: number for number, name in enumerate(classes)}
    return FileImages(str(folder), paths, labels=[index[top[0]] for top in tops], classes=classes)


def _split_folder(root: Path, split: str) -> Path:
    present = [name for name in SPLITS if (root / name).is_dir()]
    if (root / split).is_dir():
        return root / split
    if split == "test" and "val" in present:
        return root / "val"
    if not present and split in ("train", "all"):
        return root
    found = f"the folders {', '.join(present)}" if present else "no folder of a split"
    raise UserError(f"{root}: found {found}, expected {root / split}; name another split or add the folder")


def open_manifest(manifest: Path, *, split: str) -> FileImages:
    """Open a CSV file with the columns ``path`` and, as wanted, ``label`` and ``split``.

    Paths are relative to the manifest. Without a split column all rows are of every split. Class names are the distinct
    labels of the whole file, sorted, so that all splits number them alike.

    Raises:
        UserError: missing columns, rows without a label among labelled ones, no rows of the split.
    """
    try:
        with manifest.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = reader.fieldnames or []
            rows = list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{manifest}: cannot be read as CSV in UTF-8 ({error}); export it again") from error
    if "path" not in columns:
        raise UserError(f"{manifest}: found the columns {', '.join(columns) or 'none'}, expected path[,label][,split]")
    labelled = "label" in columns and any(row["label"] for row in rows)
    if labelled:
        for number, row in enumerate(rows, start=2):
            if not row["label"]:
                raise UserError(f"{manifest}, line {number}: found no label; label every row or none")
    classes = sorted({row["label"] for row in rows}) if labelled else []
    index = {name: number for number, name in enumerate(classes)}
    chosen = [row for row in rows if "split" not in columns or split in (row["split"], "all")]
    if not chosen:
        splits = sorted({str(row.get("split")) for row in rows})
        raise UserError(f"{manifest}: found no rows of split {split!r}; its splits are {', '.join(splits) or 'none'}")
    paths = [manifest.parent / row["path"] for row in chosen]
    labels = [index[row["label"]] for row in chosen] if labelled else None
    return FileImages(str(manifest), paths, labels=labels, classes=classes)
