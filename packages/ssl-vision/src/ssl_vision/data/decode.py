"""Read image files: decode any colour mode and orientation to upright uint8 RGB, and describe undecodable files."""

from __future__ import annotations

import contextlib
import io
import math
import re
import struct
import sys
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

# Imported so that all formats are registered; PIL would otherwise load all its plugins, from several threads.
from PIL import (  # noqa: F401
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    MpoImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)
from torch import Tensor

from contrastive_core.errors import UserError
from contrastive_core.text import several, size
from contrastive_core.training.crashes import native_reader
from contrastive_core.training.files import check_regular
from ssl_vision.data.dataset import NO_CLASSES, ImageSet, ReadOptions, digest
from ssl_vision.data.listing import EXTENSIONS, PathList, printable

# Beginning of a file -> description. Kinds that are not read are described with a remedy, if there is one.
_BEGINNINGS = (
    (b"\xff\xd8\xff", "a JPEG with a damaged or truncated header"),
    (b"\x89PNG", "a PNG with a damaged or truncated header"),
    (b"GIF8", "a GIF with a damaged or truncated header"),
    (b"BM", "a BMP with a damaged or truncated header"),
    (b"II*\0", "a TIFF with a damaged or truncated directory"),
    (b"MM\0*", "a TIFF with a damaged or truncated directory"),
    (b"II+\0", "a TIFF with a damaged or truncated directory"),
    (b"MM\0+", "a TIFF with a damaged or truncated directory"),
    (b"RIFF", "a WebP with a damaged or truncated header, or another RIFF file"),
    (b"version https://git-lfs", "a Git LFS pointer instead of the file itself (git lfs pull fetches it)"),
    (b"%PDF", "a PDF document"),
    (b"%!PS", "a PostScript document"),
    (b"8BPS", "a Photoshop file, which is not read"),
    (b"\0\0\0\x0cjP  ", "a JPEG 2000 image, which is not read"),
    (b"\xff\x0a", "a JPEG XL image, which is not read"),
    (b"PK\x03\x04", "a zip archive"),
    (b"\x1f\x8b", "a gzip archive"),
)
_ISO_BRANDS = {b"heic": "a HEIC image", b"heix": "a HEIC image", b"mif1": "a HEIF image", b"avif": "an AVIF image"}


def describe(data: bytes) -> str:  # noqa: PLR0911 - one return per kind
    """Describe the content of a file that no image reader accepts, in a few words."""
    if not data:
        return "an empty file"
    if not data.strip(b"\0"):
        return f"{len(data)} zero bytes"
    for beginning, what in _BEGINNINGS:
        if data.startswith(beginning):
            return what
    if data[4:8] == b"ftyp":
        return f"{_ISO_BRANDS.get(data[8:12], 'a video or an image of its family')}, which is not read"
    start = data[:400].lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return "a web page (a failed download?)"
    text = data[:48].decode("utf-8", errors="replace").strip()
    if text.replace("\n", " ").replace("\t", " ").isprintable() and "\ufffd" not in text:
        return f"text starting with {text[:32]!r}"
    return "an unknown format"


_UNKNOWN_RANGE = "whose range is unknown; save the image with unsigned pixels of 8 or 16 bits per channel"
# Tags of TIFF, and their values.
_WIDTH, _HEIGHT, _BITS, _PHOTOMETRIC, _STRIPS, _ORIENTATION, _SAMPLES = 256, 257, 258, 262, 273, 274, 277
_SUBFILE_TYPE, _DESCRIPTION, _PLANES, _TILES, _EXTRA, _SAMPLE_FORMAT, _NO_DATA = 254, 270, 284, 324, 338, 339, 42113
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _SEPARATE, _SIGNED, _FLOAT = 0, 1, 2, 2, 2, 3


def describe_tiff(data: bytes, *, more_than: int = 0) -> str | None:
    """Describe a TIFF with an intact directory, and what to do; None for other files or fewer channels.

    Args:
        data: Content of the file.
        more_than: Number of channels that the file must exceed.
    """
    tags = _tiff_tags(data)
    bands, bits = tags.get(_SAMPLES, 1), tags.get(_BITS, 1)
    if not tags or bands <= more_than:
        return None
    if tags.get(_SAMPLE_FORMAT) == _FLOAT:
        return f"found {bits}-bit floating-point pixels, {_UNKNOWN_RANGE}"
    return (
        f"found a TIFF with {several(bands, 'channel')} of {bits} bits ({tags[_WIDTH]}x{tags[_HEIGHT]} px), expected "
        f"at most 4 of 8 bits, or 1 or 3 of 16; to train on all of them set --image-channels {bands}, otherwise export "
        "the channels to use"
    )


_TYPE_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}


def _tiff_tags(data: bytes) -> dict[int, int]:
    """Return the tags of the first page of a TIFF, of lists the first value; empty without an intact directory."""
    order: Literal["little", "big"] | None = {b"II": "little", b"MM": "big"}.get(data[:2])  # type: ignore[assignment]
    big = data[2:4].strip(b"\0") == b"+"
    if order is None or not (big or data[2:4].strip(b"\0") == b"*"):
        return {}

    def number(at: int, size: int) -> int:
        return int.from_bytes(data[at : at + size], order)

    offset = 8 if big else 4
    directory = number(offset, offset)
    first = directory + (8 if big else 2)
    tags: dict[int, int] = {}
    for at in range(first, first + (4 + 2 * offset) * min(number(directory, first - directory), 4096), 4 + 2 * offset):
        size, count = _TYPE_SIZES.get(number(at + 2, 2), 0), number(at + 4, offset)
        value_offset = at + 4 + offset
        if size * count > offset:
            value_offset = number(value_offset, offset)
        if max(value_offset + size * count, at + 4 + 2 * offset) > len(data):
            return {}
        tags[number(at, 2)] = number(value_offset, size)
    has_pixels = tags.get(_WIDTH) and tags.get(_HEIGHT) and (_STRIPS in tags or _TILES in tags)
    return tags if has_pixels else {}


_AVIF = ".avif" in EXTENSIONS
if _AVIF:
    from PIL import AvifImagePlugin  # noqa: F401

# No other format is tried: a file with the suffix of an image must not start a PostScript interpreter.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", *(("AVIF",) if _AVIF else ()))
_NO_PIXELS = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")  # chunks of a PNG whose size or damage does not affect pixels
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ALPHA_MODES = ("LA", "PA", "RGBA", "RGBa")


Float = NDArray[np.float32]


class UndecodableError(ValueError):
    """The data are not a readable image; the message describes them and the remedy."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A decoded file: its pixels, uint8 ``[3, H, W]``, and how it was stored (EXIF orientation 1: upright).

    `dark` means that the file has 16 bits per channel, of which at most the lower 12 are used, and `stack` that it is a
    TIFF of several gray pages, of which the first was read.
    """

    pixels: np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]
    format: str
    mode: str
    orientation: int
    dark: bool = False
    stack: bool = False


class FileImages(ImageSet):
    """Images in files, decoded when read.

    Args:
        name: Name of the set in messages.
        root: Folder that paths are relative to.
        paths: Paths of the images.
        labels: Label of each image, or None.
        classes: Names of the classes.
        unlabelled: Reason why there are no labels, and what to do.
        split: Part of the data.
        notes: See `ImageSet`.
        unread: Paths of images of unsupported kinds, which are not part of the set.
        channels: Number of channels of the images.
        options: How to read the files.
    """

    def __init__(
        self,
        name: str,
        root: Path,
        paths: Sequence[str],
        *,
        labels: Sequence[int] | None = None,
        classes: Sequence[str] = (),
        unlabelled: str = NO_CLASSES,
        split: str = "",
        notes: Sequence[str] = (),
        unread: Sequence[str] = (),
        channels: int = 3,
        options: ReadOptions = ReadOptions(),  # noqa: B008 - frozen
    ) -> None:
        super().__init__(
            name, labels=labels, classes=classes, unlabelled=unlabelled, split=split, notes=notes, channels=channels,
            options=options,
        )  # fmt: skip
        self.files = PathList(root, paths)
        self.unread = PathList(root, unread)

    def __len__(self) -> int:
        return len(self.files)

    def read(self, index: int) -> Tensor:
        return read_image(self.files[index], self.options, channels=self.channels)

    def size(self, index: int) -> tuple[int, int]:
        if self.channels != 3:
            return super().size(index)
        return read_size(self.files[index], self.options)

    def fingerprint(self, index: int) -> str:
        return digest(read_bytes(self.files[index]))

    def path(self, index: int) -> str:
        return printable(str(self.files[index]))

    def key(self, index: int) -> str:
        return printable(self.files.relative(index))


def read_image(path: Path, options: ReadOptions = ReadOptions(), *, channels: int = 3) -> Tensor:  # noqa: B008 - frozen
    """Decode a file to uint8 ``[3, H, W]`` RGB, or to float32 ``[channels, H, W]`` if `channels` is not 3.

    The EXIF orientation is applied. Gray, palette, CMYK and other colour modes are converted with PIL's formulas,
    without colour profiles. 16-bit pixels are reduced to their high 8 bits (scaled, not clipped: 65535 becomes 255), or
    to the highest 8 of the significant bits. Transparent pixels are composited over white. The first frame of an
    animation, or the first page, is used; three pages that OME-TIFF or ImageJ metadata describes as channels become
    red, green and blue. Warnings are printed once if a 16-bit image uses at most 12 bits and `bits` is not set, and if
    only the first of several gray pages of a TIFF is used.

    Raises:
        UserError: There is no such file, it is not an image, damaged, truncated or too large, or the range of its
            pixels is unknown.
    """
    if channels != 3:
        return read_channels(path, channels, options)
    try:
        with native_reader(path):
            picture = decode(read_bytes(path), options)
    except UndecodableError as error:
        raise UserError(f"{path}: {error}") from error
    if picture.dark and not options.bits:
        _warn_once(
            path,
            "found 16-bit pixels below 4096, so that the image is nearly black; if the files have 12 significant bits, "
            "set --bits 12",
        )
    if picture.stack:
        _warn_once(
            path,
            "found a TIFF of several gray pages, of which only the first is used; if they are channels, set "
            "--image-channels to their number, otherwise save the page to use as a file",
        )
    return torch.from_numpy(picture.pixels)


def read_channels(path: Path, channels: int, options: ReadOptions = ReadOptions()) -> Tensor:  # noqa: B008 - frozen
    """Decode a file of any number of channels to float32 ``[channels, H, W]`` in [0, 1], without converting channels.

    Unsigned pixels are divided by their largest value (255, 65535, or that of the significant bits), signed 16-bit
    pixels by 32767 (or the value for their bits), with negative ones, which mark missing pixels in satellite products,
    set to 0, like pixels of the value that a GeoTIFF declares as missing (GDAL_NODATA). A TIFF can store its channels
    interleaved, as planes or as pages; it is read with tifffile (extra ``tiff``), and its orientation is applied. For a
    single channel, colour images are converted to luminance, and transparent pixels are composited over white.

    Raises:
        UserError: The file cannot be read, has another number of channels, or the range of its pixels is unknown.
    """
    data = read_bytes(path)
    is_tiff = data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
    try:
        with native_reader(path):
            values = (_tiff_channels if is_tiff else _plain_channels)(data, channels, options)
    except UndecodableError as error:
        raise UserError(f"{path}: {error}") from error
    except UserError:
        raise
    except Exception as error:  # as `decode`
        raise UserError(f"{path}: {_problem(error, data)}") from error
    return torch.from_numpy(values)


def _plain_channels(data: bytes, channels: int, options: ReadOptions) -> Float:
    _check_png(data)
    with _open(_without_text(data) or data, options) as image:
        if image.format == "TIFF":
            image = _plain_tiff(image, data, options)  # noqa: PLW2901 - the same image
        image.load()
        if channels == 1 and not image.mode.startswith("I"):
            image = _opaque(image).convert("L")  # noqa: PLW2901 - the same image
        values = np.asarray(image)
        orientation = _orientation(image)
        if orientation != 1:
            values = np.asarray(Image.fromarray(values).transpose(_UPRIGHT[orientation]))
    stored = values.transpose(2, 0, 1) if values.ndim == 3 else values[None]
    if len(stored) != channels:
        raise UndecodableError(f"found {several(len(stored), 'channel')}, expected {channels} (--image-channels)")
    return _unit(stored.astype(np.uint16) if stored.dtype.itemsize > 2 else stored, options.bits)


def _tiff_channels(data: bytes, channels: int, options: ReadOptions) -> Float:
    _check_first_page(data)
    with _tiff_file(data) as file:
        series, page = file.series[0], file.series[0].keyframe
        # tifffile returns the indices of a palette, and inverted values where 0 means white.
        as_stored = page.photometric == _BLACK_IS_ZERO and page.bitspersample in (8, 16) and not any(page.extrasamples)
        if channels > 1 or as_stored or len(series.pages) > 1 or series.dtype not in ("bool", "uint8", "uint16"):
            return _unit(_tiff_values(series, channels, options), options.bits)
    return _plain_channels(data, channels, options)


def _tiff_file(data: bytes) -> Any:
    """Open a TIFF with tifffile.

    Raises:
        UserError: It is not installed.
        UnidentifiedImageError: The directory of the file is damaged.
    """
    try:
        import tifffile  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise UserError(
            "this TIFF (its number of channels is not 3, or PIL does not read its layout) is read with tifffile, which "
            "is not installed; pip install 'ssl-vision[tiff]'"
        ) from error
    if not _tiff_tags(data):  # tifffile leaves out damaged tags
        raise UnidentifiedImageError
    file = tifffile.TiffFile(io.BytesIO(data))
    if len(set(re.findall(r'\bFileName="([^"]*)"', file.pages.first.description))) > 1:
        # An OME-TIFF of several files: without the others, tifffile would fill their pages with zeros.
        file = tifffile.TiffFile(io.BytesIO(data), is_ome=False)
    return file


def _tiff_values(series: Any, channels: int, options: ReadOptions) -> NDArray[Any]:
    """Read the channels of an image as they are stored, upright ``[channels, H, W]``, with missing pixels as 0.

    Raises:
        UndecodableError: It has another number of channels, is too large, or lacks pages.
    """
    page, axes, shape = series.keyframe, series.axes, series.shape
    sizes = dict(zip(axes, shape, strict=True))
    _check_area(sizes.get("X", 1), sizes.get("Y", 1), options)
    area = sizes.get("Y", 1) * sizes.get("X", 1)
    if math.prod(shape) > channels * area:  # before memory is allocated
        raise _other_channels(shape, axes, channels)
    if any(part is None for part in series.pages):  # tifffile would fill them with zeros
        raise UndecodableError("is damaged: pages are missing; copy or export it again, or remove it")
    values: NDArray[Any] = series.asarray()
    for axis in [a for a in axes if a not in "YX" and sizes[a] == 1]:
        values, axes = values.squeeze(axes.index(axis)), axes.replace(axis, "")
    if axes in ("YX", "XY"):
        values, axes = values[None], "C" + axes
    extra = [axis for axis in axes if axis not in "YX"]
    if len(extra) != 1 or values.shape[axes.index(extra[0])] != channels:
        raise _other_channels(values.shape, axes, channels)
    values = values.transpose([axes.index(extra[0]), axes.index("Y"), axes.index("X")])
    missing = page.tags.get(_NO_DATA)  # page.nodata of tifffile is 0 for some values of signed pixels
    if missing is not None:
        with contextlib.suppress(ValueError):
            values = np.where(values == float(str(missing.value).strip(" \0")), values.dtype.type(0), values)
    turn = page.tags.get(_ORIENTATION)
    turn = 1 if turn is None else int(turn.value)
    if 5 <= turn <= 8:
        values = values.swapaxes(1, 2)
    return values[:, :: -1 if turn in (3, 4, 7, 8) else 1, :: -1 if turn in (2, 3, 6, 7) else 1]


def _other_channels(shape: Sequence[int], axes: str, channels: int) -> UndecodableError:
    sizes = " x ".join(map(str, shape))
    return UndecodableError(
        f"found a TIFF with shape {sizes} (axes {axes}), expected {several(channels, 'channel')} (--image-channels)"
    )


def _unit(values: NDArray[Any], bits: int) -> Float:
    """Scale pixels to [0, 1] by the range of their type."""
    if values.dtype == np.bool_:
        return values.astype(np.float32)
    largest = {
        np.dtype(np.uint8): 255,
        np.dtype(np.uint16): (1 << (bits or 16)) - 1,
        np.dtype(np.int16): (1 << min(bits or 15, 15)) - 1,
    }
    if values.dtype.newbyteorder("=") not in largest:
        raise UndecodableError(
            f"found {values.dtype.name} pixels, whose range is unknown; save the image with 8 or 16 bits per channel"
        )
    scale = np.float32(1 / largest[values.dtype.newbyteorder("=")])
    unit: Float = np.clip(values.astype(np.float32) * scale, 0, 1)
    return unit


def read_size(path: Path, options: ReadOptions = ReadOptions()) -> tuple[int, int]:  # noqa: B008 - frozen
    """Return height and width of the upright image, from its header alone; the pixels may still be unreadable.

    Raises:
        UserError: There is no such file, or it has no image header.
    """
    data = read_bytes(path)
    tags = _tiff_tags(data)
    try:
        if tags:  # of any number of channels
            _check_area(tags[_WIDTH], tags[_HEIGHT], options)
            width, height, orientation = tags[_WIDTH], tags[_HEIGHT], tags.get(_ORIENTATION, 1)
        else:
            with native_reader(path), _open(data, options) as image:
                width, height, orientation = image.width, image.height, _orientation(image)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{path}: {_problem(error, data)}") from error
    return (width, height) if 5 <= orientation <= 8 else (height, width)


_LARGEST_FILE = 4 << 30


def read_bytes(path: Path) -> bytes:
    """Return the content of an image file.

    Raises:
        UserError: It cannot be opened, is not a regular file, or is larger than 4 GiB.
    """
    try:
        if (length := check_regular(path, what="an image file")) > _LARGEST_FILE:
            raise UserError(
                f"{path}: is too large: {size(length)}, the limit for an image file is {size(_LARGEST_FILE)}; is it "
                "the right one?"
            )
        return path.read_bytes()
    except FileNotFoundError as error:
        problem = "a broken link" if path.is_symlink() else "no such file"
        for ending in sorted(EXTENSIONS):
            if (longer := path.with_name(path.name + ending)).is_file():
                reason = f"{problem}, but {longer.name}; write the names with their endings"
                raise UserError(f"{path}: found {reason}") from error
        raise UserError(f"{path}: found {problem}; restore the image, or remove it from the data set") from error
    except OSError as error:
        raise UserError(
            f"{path}: cannot be opened ({error.strerror}); check that it is a file with read permission"
        ) from error


def decode(data: bytes, options: ReadOptions = ReadOptions()) -> Picture:  # noqa: B008 - frozen
    """Decode the content of an image file, see `read_image`.

    Raises:
        UndecodableError: It is not a readable image.
    """
    try:
        return _decode(data, options)
    except UndecodableError:
        raise
    except Exception as error:  # decoders raise errors of any kind for damaged files, even TypeError
        lean = _without_text(data)
        if lean is not None:
            return decode(lean, options)
        raise UndecodableError(_problem(error, data)) from error


def _decode(data: bytes, options: ReadOptions) -> Picture:
    _check_png(data)
    bands = describe_tiff(data, more_than=4)
    tags = _tiff_tags(data)
    if bands is None and tags.get(_SAMPLES) == 2 and not tags.get(_EXTRA):  # PIL would leave out the second
        bands = describe_tiff(data)
    if bands is not None:
        raise UndecodableError(bands)
    _check_first_page(data)
    with _open(data, options) as image:
        image_format, mode = image.format, image.mode
        deep = _is_deep_colour(image, data)
        if deep and 0 < options.bits < 16 and (image_format != "TIFF" or _tiff_tags(data).get(_SAMPLES, 1) > 3):
            raise UndecodableError(
                f"found a {image_format} in colour with 16 bits per channel, of which the high 8 are read, so that "
                f"--bits {options.bits} would have no effect; save it as a TIFF with three channels, or with 8 bits"
            )
        # PIL rotates a TIFF while loading it, and then drops the orientation. For other files the orientation is read
        # after loading: reading it from a PNG loads the image, and a failure must not look like a damaged EXIF block.
        tiff_orientation = _orientation(image) if image.format == "TIFF" else 1
        stack = False
        if image.format == "TIFF":
            if (colour := _colour_of_pages(image, data, options)) is not None:
                image, mode, deep = colour, "3 channels", image.mode != "L"  # noqa: PLW2901
            else:
                stack = _is_stack(image, data, options)
            image = _plain_tiff(image, data, options)  # noqa: PLW2901 - the same image
        image.load()
        orientation = _orientation(image)
        rgb, dark = _to_rgb(image, options.bits)
        if orientation != 1:
            rgb = rgb.transpose(_UPRIGHT[orientation])
        pixels = np.asarray(rgb).transpose(2, 0, 1).copy()
        dark = dark or (deep and 0 < int(pixels.max()) < 16)
        return Picture(pixels, image_format or "", mode, max(orientation, tiff_orientation), dark, stack)


def _is_deep_colour(image: Image.Image, data: bytes) -> bool:
    """Return whether a colour image has 16 bits per channel, of which the high 8 are used."""
    if image.format == "TIFF":
        tags = _tiff_tags(data)
        return tags.get(_SAMPLES, 1) >= 3 and tags.get(_BITS) == 16
    return image.format == "PNG" and data[24] == 16 and image.mode in ("RGB", "RGBA")


def _plain_tiff(image: Image.Image, data: bytes, options: ReadOptions) -> Image.Image:
    """Correct the pixels of TIFF files that PIL decodes wrongly without an error.

    Raises:
        UndecodableError: It has signed pixels of 8 bits, or is read with tifffile, which is not installed.
    """
    tags = getattr(image, "tag_v2", {})
    bits, samples = tags.get(_BITS, (1,))[0], len(tags.get(_BITS, (1,)))
    if bits == 8 and tags.get(_SAMPLE_FORMAT, (1,))[0] == _SIGNED:
        raise UndecodableError(f"found 8-bit signed pixels, {_UNKNOWN_RANGE}")
    if bits == 16 and samples == 3 and (tags.get(_PLANES) == _SEPARATE or 0 < options.bits < 16):
        return _rgb_of_tiff(data, options)
    if bits == 16 and samples == 1 and tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        largest = (1 << (options.bits or 16)) - 1
        values = np.clip(largest - np.asarray(image).astype(np.int64), 0, largest).astype(np.uint16)
        return Image.fromarray(values)
    return image


def _rgb_of_tiff(data: bytes, options: ReadOptions) -> Image.Image:
    """Read three channels with tifffile."""
    try:
        with _tiff_file(data) as file:
            planes = _unit(_tiff_values(file.series[0], 3, options), options.bits)
    except UserError as error:
        raise UndecodableError(str(error)) from error
    return Image.fromarray((planes * 255.999).astype(np.uint8).transpose(1, 2, 0))


def _other_tiff(data: bytes, options: ReadOptions) -> Image.Image | None:
    """Read a TIFF of one or three channels whose layout PIL does not know; None for other files."""
    tags = _tiff_tags(data)
    samples, zero = tags.get(_SAMPLES, 1), tags.get(_PHOTOMETRIC)
    if not tags or samples not in (1, 3) or zero not in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB):
        return None
    if samples == 3:
        image = _rgb_of_tiff(data, options)
    else:
        try:
            with _tiff_file(data) as file:
                (values,) = _tiff_values(file.series[0], 1, options)
        except UserError as error:
            raise UndecodableError(str(error)) from error
        _unit(values, options.bits)  # refuses other types
        if zero == _WHITE_IS_ZERO:
            values = np.invert(values)
        image = Image.fromarray(np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("=")))
    image.format = "TIFF"
    return image


def _colour_of_pages(image: Image.Image, data: bytes, options: ReadOptions) -> Image.Image | None:
    """Read three pages that OME-TIFF or ImageJ metadata describes as channels; None for other pages."""
    about = str(getattr(image, "tag_v2", {}).get(_DESCRIPTION, ""))
    if not _has_gray_pages(image) or not ("<OME" in about or "ImageJ=" in about):
        return None
    try:
        with _tiff_file(data) as file:
            series = file.series[0]
            channels = dict(zip(series.axes, series.shape, strict=True)).get("C")
            complete = channels == 3 and math.prod(series.shape) == 3 * image.width * image.height
    except UserError:  # tifffile is not installed
        return None
    if not complete and {"images=3", "channels=3"} <= set(about.splitlines()):
        raise UndecodableError("is damaged: pages are missing; copy or export it again, or remove it")
    return _rgb_of_tiff(data, options) if complete else None


def _is_stack(image: Image.Image, data: bytes, options: ReadOptions) -> bool:
    """Return whether a gray TIFF has a second page of the same size, which is no preview or mask of the first."""
    if not _has_gray_pages(image):
        return False
    try:
        with _open(data, options) as other:
            other.seek(1)
            same = other.size == image.size and other.mode == image.mode
            return same and not other.tag_v2.get(_SUBFILE_TYPE)  # type: ignore[attr-defined]
    except Exception:  # noqa: BLE001 - a damaged second page does not affect the first
        return False


def _check_first_page(data: bytes) -> None:
    """Refuse a TIFF that begins with a reduced copy of another page, whose few pixels would be used without notice."""
    if not _tiff_tags(data).get(_SUBFILE_TYPE, 0) & 1:
        return
    with TiffImagePlugin.TiffImageFile(io.BytesIO(data), "") as image:
        first, pages = image.size, image.n_frames
        for page in range(1, pages):
            image.seek(page)
            if min(image.size) > min(first):
                raise UndecodableError(
                    f"found a TIFF whose first page is a preview ({first[0]}x{first[1]} px) of page {page + 1} "
                    f"({image.width}x{image.height} px); save that page as a file"
                )


def _has_gray_pages(image: Image.Image) -> bool:
    return getattr(image, "is_animated", False) and image.mode in ("L", "I;16", "I;16B")


def _check_png(data: bytes) -> None:
    """Verify the checksums of the chunks of a PNG, except its texts; PIL does not check those of the pixels."""
    at = 8
    while data.startswith(b"\x89PNG\r\n\x1a\n") and at + 12 <= len(data):
        kind, end = data[at + 4 : at + 8], at + 8 + int.from_bytes(data[at : at + 4], "big")
        if end + 4 > len(data):
            return  # truncated, which PIL reports
        stored = int.from_bytes(data[end : end + 4], "big")
        if kind not in _NO_PIXELS and zlib.crc32(memoryview(data)[at + 4 : end]) != stored:
            raise UndecodableError(
                f"is damaged: the checksum of its part {kind!r} at byte {at} does not match; copy or export it again, "
                "or remove it"
            )
        at = end + 4


def count_frames(data: bytes, options: ReadOptions = ReadOptions()) -> int:  # noqa: B008 - frozen
    """Count the frames of an animation or the pages of a document; 1 if the others are damaged."""
    try:
        with _open(_without_text(data) or data, options) as image:
            return int(getattr(image, "n_frames", 1))
    except Exception:  # noqa: BLE001 - Pillow raises errors of many classes for damaged files
        return 1


def _open(data: bytes, options: ReadOptions) -> Image.Image:
    """Open an image like `PIL.Image.open`, but with the caller's limit on its size.

    PIL's limit is a module variable, shared by the whole process, and its warning names no file.
    """
    for name in _FORMATS:
        factory, accept = Image.OPEN[name]
        if accept is not None and accept(data[:16]) is not True:
            continue
        try:
            image: Image.Image = factory(io.BytesIO(data), "")
        except (SyntaxError, IndexError, TypeError, struct.error):  # as in PIL: another format may accept the file
            continue
        _check_area(image.width, image.height, options)
        return image
    other = _other_tiff(data, options)
    if other is None:
        raise UnidentifiedImageError
    return other


def _check_area(width: int, height: int, options: ReadOptions) -> None:
    if width * height > options.max_megapixels * 1e6:
        raise UndecodableError(
            f"is too large: {width}x{height} px are {width * height / 1e6:.4g} megapixels, the limit is "
            f"{options.max_megapixels:.4g}; scale it down, or raise --max-megapixels if you trust it"
        )


def _without_text(data: bytes) -> bytes | None:
    """Return a PNG without its texts and colour profile, which PIL limits in size; None if it has none."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return None
    chunks, at, has_text = [data[:8]], 8, False
    while at + 8 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        end = at + 12 + length
        if data[at + 4 : at + 8] in _NO_PIXELS:
            has_text = True
        else:
            chunks.append(data[at:end])
        at = end
    return b"".join(chunks) if has_text else None


def _problem(error: Exception, data: bytes) -> str:
    if isinstance(error, UndecodableError):
        return str(error)
    if isinstance(error, UnidentifiedImageError):
        tiff = describe_tiff(data)
        if tiff is not None:
            return tiff
        return f"found {describe(data)}, expected an image; copy or export the file again, or remove it"
    return f"cannot be decoded ({error}); it is damaged or truncated: copy or export it again, or remove it"


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # noqa: BLE001
        return 1  # a damaged EXIF block does not make the pixels unreadable
    return value if value in _UPRIGHT else 1


def _to_rgb(image: Image.Image, bits: int) -> tuple[Image.Image, bool]:
    """Convert the image to RGB, and return whether it has 16 bits of which at most the lower 12 are used."""
    mode = image.mode
    if mode == "RGB" and "transparency" not in image.info:
        return image, False
    if mode == "F" or (mode == "I" and image.format == "TIFF"):
        sample = _sample_of(image)
        raise UndecodableError(f"found {sample} pixels (mode {mode}), {_UNKNOWN_RANGE}")
    if mode in ("LAB", "HSV"):
        raise UndecodableError(f"found pixels in the colour space {mode}, which is not read; save the image in RGB")
    if mode.startswith("I"):
        # The remaining files of modes I and I;16 have 16 bits.
        values = np.asarray(image).astype(np.int64)
        gray = np.minimum(values >> ((bits or 16) - 8), 255).astype(np.uint8)
        if "transparency" in image.info:
            gray[values == image.info["transparency"]] = 255
        return Image.fromarray(gray).convert("RGB"), bool(0 < values.max() < 4096)
    return _opaque(image).convert("RGB"), False


def _opaque(image: Image.Image) -> Image.Image:
    """Composite an image with transparent pixels over white."""
    if image.mode not in _ALPHA_MODES and "transparency" not in image.info:
        return image
    layer = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)


def _sample_of(image: Image.Image) -> str:
    """Describe the pixel type of a TIFF: "16-bit signed", "32-bit"."""
    tags = getattr(image, "tag_v2", {})
    (bits, *_), (kind, *_) = tags.get(258, (32,)), tags.get(339, (1,))
    return f"{bits}-bit" + {2: " signed", 3: " floating-point"}.get(int(kind), "")


_warned: set[str] = set()


def _warn_once(path: Path, text: str) -> None:
    if text not in _warned:
        _warned.add(text)
        print(f"warning: {path}: {text}", file=sys.stderr, flush=True)  # noqa: T201 - also visible from Python
