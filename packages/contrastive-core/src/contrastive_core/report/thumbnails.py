"""Images small enough to stand in a page as text."""

from __future__ import annotations

import base64
import io

import torch
from PIL import Image
from torch import Tensor

_EXACT_SIDE = 64
_LARGEST_SIDE = 160


def to_image(picture: Tensor) -> Image.Image:
    """uint8 or [0, 1] float ``[3, H, W]`` as a PIL image."""
    if picture.is_floating_point():
        picture = (picture.detach().clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(picture.cpu().permute(1, 2, 0).contiguous().numpy())


def data_uri(picture: Tensor) -> str:
    """The image inside a ``data:`` URI: up to 64 pixels a side exact (PNG), else at most 160 (JPEG)."""
    image, file = to_image(picture), io.BytesIO()
    if max(image.size) <= _EXACT_SIDE:
        image.save(file, "PNG", optimize=True)
        kind = "png"
    else:
        image.thumbnail((_LARGEST_SIDE, _LARGEST_SIDE), Image.Resampling.LANCZOS)
        image.save(file, "JPEG", quality=88)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
