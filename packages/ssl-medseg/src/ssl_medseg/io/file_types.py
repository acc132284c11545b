"""Recognise image files and DICOM series by name, and file formats by their first bytes."""

from __future__ import annotations

import gzip
import os
import unicodedata
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from contrastive_core.errors import UserError, without_path
from contrastive_core.training.files import is_hidden

# NIfTI comes first; other formats need their reader installed. An .img file is an image if its .hdr is in the folder.
ENDINGS = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".img", ".mgz", ".mgh")
DICOM_ENDINGS = (".dcm", ".ima")
UNREAD_ENDINGS = (
    ".img.gz", ".hdr.gz", ".nii.bz2", ".nii.zip", ".nii.xz", ".nrrd.gz", ".zip", ".tar", ".tgz", ".7z", ".rar",
    ".npy", ".npz", ".mat", ".h5", ".hdf5", ".tif", ".tiff", ".png", ".jpg", ".jpeg", ".bmp", ".mnc", ".vtk",
    ".vti", ".par", ".rec", ".bruker", ".nii.gz.part", ".nii.part", ".crdownload", ".gipl", ".tar.gz", ".minc",
    ".mgh.gz", ".mif", ".mif.gz", ".v", ".b2nd", ".zst",
)  # fmt: skip
"""Endings of files that may contain volumes but cannot be read; such files in image folders are reported."""
_BESIDE_IMAGES = (".json", ".txt", ".md", ".csv", ".tsv", ".xml", ".yaml", ".md5", ".sha1", ".sha256")
_COMPANIONS = {".mhd": (".raw", ".zraw"), ".nhdr": (".raw", ".raw.gz"), ".img": (".hdr", ".mat")}
_DETACHED = 1 << 20  # largest number of bytes of a header that are searched for the names of files beside it
_SAMPLE_SIZE = 20  # largest number of files with the same ending that are tested for being DICOM
_GZIP = b"\x1f\x8b"
_DICOM_OFFSET, _DICOM_MARK, _STORAGE_CLASS = 128, b"DICM", b"1.2.840.10008.5.1.4.1.1."
_OTHERS = {
    b"PK\x03\x04": "a ZIP archive: unpack it",
    b"BZh": "compressed by bzip2: unpack it",
    b"\xfd7zXZ": "compressed by xz: unpack it",
    b"7z\xbc\xaf": "a 7z archive: unpack it",
    b"\x89PNG": "a PNG picture; expected a volume",
    b"\xff\xd8\xff": "a JPEG picture; expected a volume",
    b"\x89HDF": "an HDF5 file; expected NIfTI. Convert it",
    b"NRRD": "an NRRD file: rename it to .nrrd",
    b"version https://git-lfs": "a Git LFS pointer: fetch the file itself (git lfs pull)",
    b"/annex/objects": "a git-annex pointer: fetch the file itself (git annex get)",
    b"<!DOCTYPE": "a web page: the download failed. Download it again",
    b"<html": "a web page: the download failed. Download it again",
}


def stem(path: Path) -> str:
    """Return the name of a file without its image ending; for a folder, its name. Accents are composed (NFC).

    Files from macOS may have decomposed accents, which look the same: their labels, tables and masks would not be
    found.

    >>> stem(Path("imagesTr/patient002_frame01.nii.gz"))
    'patient002_frame01'
    """
    for ending in ENDINGS:
        if path.name.lower().endswith(ending):
            return unicodedata.normalize("NFC", path.name[: -len(ending)])
    return unicodedata.normalize("NFC", path.name)


def is_image(path: Path) -> bool:
    """Return whether a path has the name of an image file; hidden files, such as macOS's ``._name``, do not count."""
    if path.name.startswith(".") or not path.name.lower().endswith(ENDINGS):
        return False
    return not path.name.lower().endswith(".img") or header_of(path) is not None


def is_segmentation(path: Path) -> bool:
    """Return whether a path has the name of a segmentation of 3D Slicer, which is a label and no image."""
    return path.name.lower().endswith(".seg.nrrd")


def header_of(image: Path) -> Path | None:
    """Return the header file of an ``.img`` file; None if there is none."""
    return next((header for end in (".hdr", ".HDR") if (header := image.with_suffix(end)).is_file()), None)


def is_series(path: Path) -> bool:
    """Return whether a path is a folder with DICOM files, recognised by their extension or their first bytes."""
    if is_hidden(path.name) or not path.is_dir():
        return False
    files = sorted(entry for entry in path.iterdir() if entry.is_file() and not entry.name.startswith("."))
    if any(file.suffix.lower() in DICOM_ENDINGS for file in files):
        return True
    # DICOMDIR lists the files of a disk, and has the mark of DICOM as well.
    plain = [file for file in files if not is_image(file) and file.name.upper() != "DICOMDIR"]
    seen: Counter[str] = Counter()
    for file in plain:  # by ending, because logs may come before the images
        seen[file.suffix.lower()] += 1
        if seen[file.suffix.lower()] <= _SAMPLE_SIZE and has_dicom_mark(file):
            return True
    return False


def is_dicom(file: Path) -> bool:
    """Return whether a file is DICOM by its extension or its preamble."""
    return not is_image(file) and (file.suffix.lower() in DICOM_ENDINGS or has_dicom_mark(file))


def images_in(folder: Path, *, series: bool = True) -> Iterator[Path]:
    """Yield the image files and DICOM series in a folder, sorted by name; nothing if the folder does not exist."""
    if folder.is_dir():
        for path in sorted(folder.iterdir()):
            if (path.is_file() and is_image(path)) or (series and is_series(path)):
                yield path


def walk(root: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Walk through a folder like `os.walk`, sorted and without hidden folders, and enter every linked folder once.

    The caller may remove names from the list of folders to skip them.
    """
    entered = set()
    for current, folders, names in os.walk(root, followlinks=True):
        place = Path(current).stat()
        if (place.st_dev, place.st_ino) in entered:  # a link that leads back
            folders.clear()
            continue
        entered.add((place.st_dev, place.st_ino))
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        yield Path(current), folders, sorted(names)


def why_unread(path: Path) -> str:  # noqa: PLR0911 - a reason each
    """Return why a file among images cannot be read, as a phrase; empty if it is an image, or clearly not a volume."""
    name = path.name.lower()
    if path.name.startswith(".") or name in ("thumbs.db", "desktop.ini"):
        return ""
    if path.is_symlink() and not path.exists():
        return "a link to a file that does not exist"
    if is_segmentation(path):
        return "a segmentation of 3D Slicer, which is no image"
    if is_image(path) or path.is_dir():
        return ""
    if name.endswith(".img"):
        return "an .img file without its .hdr beside it"
    if name.endswith(".hdr") and not any(path.with_suffix(end).is_file() for end in (".img", ".IMG")):
        return "an .hdr file without its .img beside it"
    for ending in UNREAD_ENDINGS:
        if name.endswith(ending):
            return f"{ending} files are not read"
    if not name.endswith(_BESIDE_IMAGES) and any(f"{ending}." in name for ending in ENDINGS):
        return f"named like an image, except for the ending {path.suffix}"
    return ""


def is_companion(path: Path) -> bool:
    """Return whether a file belongs to an image beside it: the voxels of an .mhd file, the header of an .img file."""
    return any(
        path.name.lower().endswith(ends) and any(path.with_suffix(e).is_file() for e in (ending, ending.upper()))
        for ending, ends in _COMPANIONS.items()
    )


def parts_of(path: Path) -> list[Path]:
    """Return the files that hold an image or label: the file, and those with its voxels or header beside it.

    A header alone does not identify its image: those of several patients may be equal, and a program that saves a
    corrected label changes only the file with the voxels.
    """
    name = path.name.lower()
    if name.endswith(".img"):
        beside = header_of(path)
        return [path] if beside is None else [path, beside]
    if name.endswith(".hdr"):
        return [path, *(other for end in (".img", ".IMG") if (other := path.with_suffix(end)).is_file())][:2]
    if not name.endswith((".mhd", ".nhdr")):
        return [path]
    with path.open("rb") as file:
        lines = [os.fsdecode(line.strip()) for line in file.read(_DETACHED).splitlines()]
    for place, line in enumerate(lines):
        key, _, value = line.replace("=", ":", 1).partition(":")
        if key.strip().lower() in ("elementdatafile", "data file", "datafile"):
            target = value.strip()
            if target.upper().startswith("LIST"):
                names = lines[place + 1 :]
            elif "%" in target:  # a file per slice, such as slice%03d.raw 1 20 1
                start = target.partition("%")[0]
                names = sorted(other.name for other in path.parent.iterdir() if other.name.startswith(start))
            else:
                names = [target]
            files = [path.parent / each for each in names if each]
            return [path, *(other for other in files if os.path.isfile(other))]  # noqa: PTH113 - also for long names
    return [path]


def content_of(path: Path) -> str:  # noqa: PLR0911 - a kind each
    """Return how the content of a file contradicts its ending, and what to do, as a clause; empty if it does not."""
    try:
        with path.open("rb") as file:
            start = file.read(_DICOM_OFFSET + 1024)
    except OSError as error:
        return f"cannot be read ({error.strerror}); check its permissions"
    name, is_packed = path.name.lower(), start[:2] == _GZIP
    if not start:
        return "is empty; copy it again"
    if is_packed and not name.endswith((".gz", ".mgz")):
        return f"is gzip-compressed, but its name does not end in .gz: rename it to {path.name}.gz"
    if not is_packed and name.endswith(".gz"):
        if _is_nifti(start):
            return f"is not gzip-compressed: rename it to {path.name[: -len('.gz')]}"
        return f"is not gzip-compressed; it is {_kind(start)}"
    if not is_packed and name.endswith(ENDINGS) and (kind := _known_kind(start)):
        return f"is {kind}"
    content = _unpacked_start(start) if is_packed and name.endswith(".gz") else b""
    if content.startswith(_GZIP):
        return "is gzip-compressed twice: unpack it once"
    if kind := _known_kind(content):
        return f"contains, once unpacked, {kind}"
    return ""


def has_dicom_mark(file: Path) -> bool:
    """Return whether a file has the DICOM prefix after its preamble, or begins as DICOM without them."""
    try:
        with file.open("rb") as stream:
            return _is_dicom(stream.read(_DICOM_OFFSET + 1024))
    except OSError:
        return False


def _is_dicom(start: bytes) -> bool:
    # Old scanners omit preamble and prefix: the file begins with group 2 or 8, which states the class of the object.
    without = start.startswith((b"\x02\x00", b"\x08\x00")) and _STORAGE_CLASS in start
    return start[_DICOM_OFFSET : _DICOM_OFFSET + 4] == _DICOM_MARK or without


def without_paths(error: Exception, paths: Iterable[Path]) -> str:
    """Return the message of an error about several files, without their paths."""
    message = str(error)
    for path in paths:
        message = without_path(UserError(message), path)
    return message


def _is_nifti(start: bytes) -> bool:
    size = start[:4]
    return any(int.from_bytes(size, order) in (348, 540) for order in ("little", "big"))


def _known_kind(start: bytes) -> str:
    if _is_dicom(start):
        return "a DICOM file: put the files of a series into a folder of their own"
    return next((what for mark, what in _OTHERS.items() if start.startswith(mark)), "")


def _kind(start: bytes) -> str:
    if not start.strip(b"\0"):
        return "filled with zeros: the copy was interrupted. Copy it again"
    return _known_kind(start) or "of an unknown format. Copy or convert it again"


def _unpacked_start(start: bytes) -> bytes:
    try:
        return zlib.decompressobj(wbits=31).decompress(start, 256)
    except (zlib.error, gzip.BadGzipFile):
        return b""
