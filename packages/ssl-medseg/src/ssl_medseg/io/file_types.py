"""Recognise image files and DICOM series by their names."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

# NIfTI first; the others are read where their reader is installed.
ENDINGS = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")
DICOM_ENDINGS = (".dcm", ".ima")
_LOOKED_AT = 20  # files without an ending, in search of a DICOM one


def stem(path: Path) -> str:
    """The name of a file without the ending of an image, of a folder its name.

    >>> stem(Path("imagesTr/patient002_frame01.nii.gz"))
    'patient002_frame01'
    """
    for ending in ENDINGS:
        if path.name.lower().endswith(ending):
            return path.name[: -len(ending)]
    return path.name


def is_image(path: Path) -> bool:
    """Whether a path is called like an image file; hidden ones, such as macOS's ``._name``, are none."""
    return not path.name.startswith(".") and path.name.lower().endswith(ENDINGS)


def is_series(path: Path) -> bool:
    """Whether a path is a folder with DICOM files in it, by their ending or by the mark at their beginning."""
    if path.name.startswith(".") or not path.is_dir():
        return False
    files = sorted(entry for entry in path.iterdir() if entry.is_file() and not entry.name.startswith("."))
    return any(file.suffix.lower() in DICOM_ENDINGS for file in files) or any(map(_has_dicom_mark, files[:_LOOKED_AT]))


def images_in(folder: Path, *, series: bool = True) -> Iterator[Path]:
    """Image files and DICOM series folders that lie in a folder, sorted by name; nothing where there is no folder."""
    if folder.is_dir():
        for path in sorted(folder.iterdir()):
            if (path.is_file() and is_image(path)) or (series and is_series(path)):
                yield path


def without_path(error: Exception, path: Path) -> str:
    """The message of an error about a file, without saying where the file lies."""
    return str(error).replace(f"{path}: ", "").replace(str(path), path.name).replace(f"{path.parent}/", "")


def _has_dicom_mark(file: Path) -> bool:
    with file.open("rb") as opened:
        return opened.read(132)[128:] == b"DICM"
