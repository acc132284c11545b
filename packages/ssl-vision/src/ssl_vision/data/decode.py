"""One image file as the picture its maker meant: uint8 RGB, upright, whatever its mode."""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

# Imported so that each format is known from the start; PIL would otherwise load all its plugins, from several threads.
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
from ssl_vision.data.sniff import describe

EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".gif"}
)
# Nothing else is tried: of a file that calls itself an image, no PostScript interpreter shall be started.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
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


class UndecodableError(ValueError):
    """The bytes are no image that can be shown; the message says what they are instead and what to do."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A decoded file: pixels uint8 ``[3, H, W]``, and how it was stored (EXIF orientation 1: upright)."""

    pixels: np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]
    format: str
    mode: str
    orientation: int


def read_image(path: Path) -> Tensor:
    """Decode a file to uint8 ``[3, H, W]`` RGB.

    The EXIF orientation is applied. Gray, palette, CMYK and other colour modes are converted by PIL's plain formulas,
    without colour profiles. Of 16 bits the high 8 are kept (65535 becomes 255: scaled, not clipped). Transparent pixels
    are laid over white. Of an animation or a stack of pages the first is taken.

    Raises:
        UserError: no such file, not an image, damaged or truncated, or pixels of 32 bits, whose range nothing says.
    """
    try:
        return torch.from_numpy(decode(read_bytes(path)).pixels)
    except UndecodableError as error:
        raise UserError(f"{path}: {error}") from error


def read_size(path: Path) -> tuple[int, int]:
    """Height and width of the upright image, from its header alone; the pixels may still prove unreadable.

    Raises:
        UserError: no such file, or no header of an image.
    """
    data = read_bytes(path)
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            if image.format == "TIFF":
                image.load()  # whether PIL swaps the sides of its header depends on its version
            lies = image.format != "TIFF" and _orientation(image) >= 5
            return (image.width, image.height) if lies else (image.height, image.width)
    except Exception as error:
        raise UserError(f"{path}: {_problem(error, data)}") from error


def read_bytes(path: Path) -> bytes:
    """Content of a file.

    Raises:
        UserError: it cannot be opened.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        found = "a link to a file that is gone" if path.is_symlink() else "no such file"
        raise UserError(f"{path}: found {found}; put the image back, or take it out of the data set") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be opened ({error.strerror}); see that it is a file you may read") from error


def decode(data: bytes) -> Picture:
    """The content of an image file as a picture; see `read_image`.

    Raises:
        UndecodableError: it is none.
    """
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            mode = image.mode
            # PIL turns a TIFF while loading it, after which it no longer says so. Other files are asked after loading:
            # asking a PNG loads it, and a failure to load must not pass for a failure to read its EXIF block.
            turned = _orientation(image) if image.format == "TIFF" else 1
            image.load()
            orientation = _orientation(image)
            rgb = _to_rgb(image)
            if orientation != 1:
                rgb = rgb.transpose(_UPRIGHT[orientation])
            pixels = np.asarray(rgb).transpose(2, 0, 1).copy()
            return Picture(pixels, image.format or "", mode, max(orientation, turned))
    except UndecodableError:
        raise
    except Exception as error:  # decoders raise whatever a damaged file leads them to, down to TypeError
        raise UndecodableError(_problem(error, data)) from error


def count_frames(data: bytes) -> int:
    """Pictures in a file that decodes: frames of an animation, pages of a document; 1 if the others are damaged."""
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            return int(getattr(image, "n_frames", 1))
    except (OSError, SyntaxError, ValueError, TypeError, EOFError, LookupError, struct.error):
        return 1


def _problem(error: Exception, data: bytes) -> str:
    if isinstance(error, UnidentifiedImageError):
        return f"found {describe(data)}, expected an image; copy or export the file again, or remove it"
    if isinstance(error, Image.DecompressionBombError):
        return f"is too large ({error}); scale it down, or raise PIL.Image.MAX_IMAGE_PIXELS if you trust it"
    return f"cannot be decoded ({error}); it is damaged or cut off: copy or export it again, or remove it"


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except (SyntaxError, ValueError, TypeError, KeyError, OSError, struct.error):
        return 1  # a damaged EXIF block does not make the pixels unreadable
    return value if value in _UPRIGHT else 1


def _to_rgb(image: Image.Image) -> Image.Image:
    mode = image.mode
    if mode == "RGB" and "transparency" not in image.info:
        return image
    if mode == "F" or (mode == "I" and image.format == "TIFF"):
        raise UndecodableError(
            f"found 32-bit pixels (mode {mode}), whose range nothing says; save the image with 8 or 16 bits per channel"
        )
    if mode.startswith("I"):
        # What remains of modes I and I;16 are files of 16 bits.
        values = np.asarray(image).astype(np.int64)
        gray = (values >> 8).astype(np.uint8)
        if "transparency" in image.info:
            gray[values == image.info["transparency"]] = 255
        return Image.fromarray(gray).convert("RGB")
    if mode in _ALPHA_MODES or "transparency" in image.info:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")
