"""List the files below a folder, in an order that does not depend on the file system."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import features

from contrastive_core.errors import UserError
from contrastive_core.training.files import is_hidden

EXTENSIONS = frozenset(
    f".{kind}"
    for kind in (
        "jpg", "jpeg", "jpe", "jfif", "jif", "mpo", "png", "apng", "bmp", "webp", "tif", "tiff", "ppm", "pgm", "pbm",
        "pnm", "gif", *(["avif"] if features.check("avif") else []),
    )
)  # fmt: skip
"""Suffixes of the images that are read; AVIF with a Pillow that has it."""
UNREAD = frozenset(
    f".{kind}"
    for kind in (
        "heic", "heics", "heif", "heifs", "hif", "avif", "avifs", "jp2", "j2c", "j2k", "jpc", "jpf", "jpx", "jxl",
        "jxr", "wdp", "jps", "pns", "bpg", "qoi", "dib", "psd", "psb", "xcf", "svg", "svgz", "eps", "tga", "pcx", "sgi",
        "dds", "ico", "icns", "xbm", "xpm", "pam", "pfm", "exr", "hdr", "dcm", "dicom", "fits", "fit", "fts", "npy",
        "btf", "tf8", "lsm", "czi", "lif", "nd2", "oib", "oif", "stk", "svs", "ndpi", "scn", "vsi", "mrxs", "bif",
        "ecw", "sid",
        "dng", "cr2", "cr3", "crw", "nef", "nrw", "arw", "srf", "sr2", "orf", "rw2", "raf", "pef", "srw", "x3f", "raw",
        "3fr", "dcr", "erf", "fff", "gpr", "iiq", "kdc", "mef", "mos", "mrw", "rwl",
    )
).difference(EXTENSIONS)  # fmt: skip
"""Suffixes of images that are not read; they are reported instead of silently left out."""


def is_image(name: str) -> bool:
    """Whether a file name has the suffix of a supported image format."""
    return PurePosixPath(name).suffix.lower() in EXTENSIONS


Identity = tuple[int, int]


@dataclass
class Listing:
    """Everything below a folder, in sorted lists of relative paths with ``/`` as separator.

    Attributes:
        images: Files and links with the suffix of a supported image format, including broken links.
        unread: Files with the suffix of an unsupported image format, such as HEIC or camera raw files.
        others: All other files.
        hidden: Files and folders whose name begins with a dot; these folders are not searched.
        folders: Folders, including links to folders.
        same: Groups of paths that lead to the same folder by links; folders inside of them are not listed again.
    """

    images: list[str] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    same: list[list[str]] = field(default_factory=list)


def list_folder(folder: Path) -> Listing:
    """List a folder recursively; links to folders are followed, except to a parent folder.

    Raises:
        UserError: A folder cannot be read.
    """
    listing = Listing()
    visited: dict[str, Identity] = {}
    for kind, path in _walk(folder, "", frozenset({identity_of(folder)}), visited):
        getattr(listing, kind).append(path)
    for paths in (listing.images, listing.unread, listing.others, listing.hidden, listing.folders):
        paths.sort()
    listing.same = _same_folders(visited)
    return listing


def _same_folders(visited: dict[str, Identity]) -> list[list[str]]:
    groups: dict[Identity, list[str]] = {}
    for path, identity in visited.items():
        groups.setdefault(identity, []).append(path)
    same = []
    for paths in groups.values():
        parents = {path.rpartition("/")[0] for path in paths}
        # Folders of the same name in folders that are the same themselves follow from the group of the latter.
        follows = len(parents) == len(paths) and len({visited.get(parent, parent) for parent in parents}) == 1
        if len(paths) > 1 and not follows:
            same.append(sorted(paths))
    return sorted(same)


def holds_image(folder: Path) -> bool:
    """Whether there is an image below a folder, stopping at the first."""
    return any(kind == "images" for kind, _ in _walk(folder, "", frozenset({identity_of(folder)}), {}))


def _walk(
    folder: Path, prefix: str, above: frozenset[Identity], visited: dict[str, Identity]
) -> Iterator[tuple[str, str]]:
    try:
        entries = list(os.scandir(folder))
    except OSError as error:
        raise UserError(f"{folder}: cannot be listed ({error.strerror}); check its permissions") from error
    for entry in entries:
        path = prefix + entry.name
        if is_hidden(entry.name):
            yield "hidden", path
        elif entry.is_dir():
            identity = identity_of(Path(entry.path))
            if identity not in above:  # a link to a parent would be followed forever
                visited[path] = identity
                yield "folders", path
                yield from _walk(Path(entry.path), path + "/", above | {identity}, visited)
        elif is_image(entry.name):
            yield "images", path
        else:
            yield "unread" if PurePosixPath(entry.name).suffix.lower() in UNREAD else "others", path


def identity_of(folder: Path) -> Identity:
    """Return the device and the number of a folder; equal for all paths that lead to it by links."""
    status = folder.stat()
    return status.st_dev, status.st_ino


def printable(path: str) -> str:
    """Return a path with bytes that are not UTF-8 escaped, so that it can be printed."""
    return path.encode("utf-8", errors="backslashreplace").decode()


class PathList:
    """Paths below a folder, stored in two arrays.

    A million paths take only the memory of their characters, and pickling them for a loader worker creates no million
    Python objects.
    """

    def __init__(self, root: Path, paths: Sequence[str]) -> None:
        encoded = [os.fsencode(path) for path in paths]
        self._root = root
        self._letters = np.frombuffer(b"".join(encoded), dtype=np.uint8)
        self._ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> Path:
        return self._root / self.relative(index)

    def relative(self, index: int) -> str:
        """Return the path as it was given."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"there is no image {index} among {len(self)}")
        place = index % len(self)
        letters = self._letters[self._ends[place] : self._ends[place + 1]].tobytes()
        return os.fsdecode(letters)
