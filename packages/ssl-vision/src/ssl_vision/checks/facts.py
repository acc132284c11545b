"""Facts about each image, gathered in one pass."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import PurePath

import numpy as np
from numpy.typing import NDArray

from contrastive_core.errors import UserError
from contrastive_core.training.crashes import native_reader
from ssl_vision.data.dataset import ImageSet
from ssl_vision.data.decode import FileImages, Picture, UndecodableError, count_frames, decode, read_bytes

# Usual suffixes of each format; several cameras write MPO files as .jpg.
_ENDINGS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".jif"),
    "MPO": (".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".mpo"),
    "PNG": (".png", ".apng"),
    "BMP": (".bmp",),
    "WEBP": (".webp",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "GIF": (".gif",),
    "AVIF": (".avif",),
}
_MAY_HOLD_SEVERAL = ("GIF", "TIFF", "WEBP", "PNG")


@dataclass(frozen=True, slots=True)
class Facts:
    """Facts about one image; for an unreadable one, only `problem` is set.

    Attributes:
        split: Split of the image.
        index: Index within the split.
        class_name: Class, None without labels.
        problem: Reason why it cannot be read.
        size: Width and height, upright.
        format: File format; empty for images without files of their own.
        mode: Mode of the stored pixels.
        is_turned: Whether its EXIF block rotates or mirrors it.
        frames: Number of pictures in the file.
        is_misnamed: Whether its suffix belongs to another format.
        is_blank: Whether all pixels have one colour.
        file_hash: Hash of the file.
        pixel_hash: Hash of size and decoded pixels.
        is_dark: Whether it has 16 bits per channel, of which at most the lower 12 are used.
        is_stack: Whether it is a TIFF of several gray pages, of which the first is used.
    """

    split: str
    index: int
    class_name: str | None
    problem: str | None = None
    size: tuple[int, int] = (0, 0)
    format: str = ""
    mode: str = "RGB"
    is_turned: bool = False
    frames: int = 1
    is_misnamed: bool = False
    is_blank: bool = False
    file_hash: bytes = b""
    pixel_hash: bytes = b""
    is_dark: bool = False
    is_stack: bool = False


def look_at(images: ImageSet, index: int, *, split: str) -> Facts:
    """Read and decode one image of a set, and collect facts about it."""
    label = images.label(index)
    class_name = None if label is None else images.classes[label]
    if not isinstance(images, FileImages):
        pixels = images.read(index).numpy()
        size, blank, pixel_hash = _measured(pixels)
        return Facts(split, index, class_name, size=size, is_blank=blank, pixel_hash=pixel_hash)
    path = images.files[index]
    if images.channels != 3:
        return _of_channels(images, index, split=split, class_name=class_name)
    try:
        data = read_bytes(path)
        with native_reader(path):
            picture = decode(data, images.options)
            several = picture.format in _MAY_HOLD_SEVERAL and not picture.mode.endswith("channels")
            frames = count_frames(data, images.options) if several else 1
    except UserError as error:
        return Facts(split, index, class_name, problem=str(error).removeprefix(f"{path}: "))
    except UndecodableError as error:
        return Facts(split, index, class_name, problem=str(error))
    size, blank, pixel_hash = _measured(picture.pixels)
    return Facts(
        split,
        index,
        class_name,
        size=size,
        format=picture.format,
        mode=picture.mode,
        is_turned=picture.orientation != 1,
        frames=frames,
        is_misnamed=_is_misnamed(path, picture),
        is_blank=blank,
        file_hash=_hash(data),
        pixel_hash=pixel_hash,
        is_dark=picture.dark,
        is_stack=picture.stack,
    )


def _of_channels(images: FileImages, index: int, *, split: str, class_name: str | None) -> Facts:
    """Collect facts about an image whose number of channels is not 3; its file has no colour mode."""
    path = images.files[index]
    try:
        pixels = images.read(index).numpy()
        data = read_bytes(path)
    except UserError as error:
        return Facts(split, index, class_name, problem=str(error).removeprefix(f"{path}: "))
    size, blank, pixel_hash = _measured(pixels)
    mode = f"{images.channels} channels"
    return Facts(
        split, index, class_name, size=size, mode=mode, is_blank=blank, file_hash=_hash(data), pixel_hash=pixel_hash
    )  # fmt: skip


def _measured(pixels: NDArray[np.uint8] | NDArray[np.float32]) -> tuple[tuple[int, int], bool, bytes]:
    _, height, width = pixels.shape
    blank = bool((pixels == pixels[:, :1, :1]).all())
    return (width, height), blank, _hash(f"{width}x{height} ".encode(), np.ascontiguousarray(pixels).data)


def _hash(*parts: bytes | memoryview) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(part)
    return digest.digest()


def _is_misnamed(path: PurePath, picture: Picture) -> bool:
    return path.suffix.lower() not in _ENDINGS.get(picture.format, ())
