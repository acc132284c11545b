"""One image file as the picture its maker meant: uint8 RGB, upright, whatever its mode."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from contrastive_core.errors import UserError

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".gif"})


def read_image(path: Path) -> Tensor:
    """Decode a file to uint8 ``[3, H, W]`` RGB.

    The EXIF orientation is applied. Gray, palette, CMYK and other colour modes are converted; 16-bit images are scaled to 8
    bits (divided by 257), not clipped; transparent pixels are laid over white. Of an animation the first frame is taken.

    Raises:
        UserError: not an image, truncated, or of floating-point pixels, whose range nothing says.
    """
    try:
        with Image.open(path) as image:
            image.load()
            picture = to_rgb(ImageOps.exif_transpose(image))
    except FileNotFoundError as error:
        raise UserError(f"{path}: there is no such file") from error
    except UnidentifiedImageError as error:
        found = "an empty file" if path.stat().st_size == 0 else "no known image format inside"
        raise UserError(f"{path}: found {found}, expected an image; remove the file or export it again") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: cannot be decoded ({error}); copy or export the file again") from error
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any mode to RGB.

    Raises:
        ValueError: floating-point pixels.
    """
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range; save the image with 8 or 16 bits")
    if image.mode.startswith("I"):
        # Modes I and I;16 hold 16-bit files; full scale is 65535 = 255 * 257.
        values = np.asarray(image).astype(np.int64).clip(0, 65535)
        image = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")
