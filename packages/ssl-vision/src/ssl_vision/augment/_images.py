"""What the public functions accept, and the way between images [N, 3, H, W] and planes [3, N, P]."""

from __future__ import annotations

import torch
from torch import Tensor


def check_images(images: Tensor) -> None:
    """Refuse anything but uint8 or float images [N, 3, H, W]."""
    if not isinstance(images, Tensor):
        raise TypeError(f"images must be a tensor [N, 3, H, W], got {type(images).__name__}")
    if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape[2:]:
        raise ValueError(
            f"images must be [N, 3, H, W] (RGB), got {tuple(images.shape)}: "
            "add the batch dimension to a single image, repeat the channel of grey images"
        )
    if images.dtype != torch.uint8 and not images.dtype.is_floating_point:
        raise TypeError(f"images must be uint8 (0..255) or floating point (0..1), got {images.dtype}")


def check_range(images: Tensor) -> None:
    """Refuse float images that are visibly not in [0, 1]; one image is looked at, the usual mistake is in all of them."""
    if images.dtype.is_floating_point and len(images):
        low, high = images[0].aminmax()
        if low < -0.01 or high > 1.01:
            raise ValueError(
                f"float images must have values in [0, 1], got {float(low):.3g}..{float(high):.3g}: "
                "divide 0..255 by 255 (or pass uint8), and normalise by mean and deviation after augmenting"
            )


def check_ids(ids: Tensor, images: Tensor) -> None:
    """Refuse ids that are not one whole number per image."""
    if not isinstance(ids, Tensor) or ids.dtype != torch.int64 or ids.shape != images.shape[:1]:
        got = f"{ids.dtype} {tuple(ids.shape)}" if isinstance(ids, Tensor) else type(ids).__name__
        raise ValueError(f"ids must be an int64 tensor [{len(images)}], one per image, got {got}")


def to_float(images: Tensor) -> Tensor:
    """uint8 to [0, 1]; floating point to float32."""
    return images.float().mul_(1 / 255) if images.dtype == torch.uint8 else images.float()


def as_planes(images: Tensor) -> Tensor:
    """A float32 copy [3, N, H * W]."""
    check_images(images)
    x = images.transpose(0, 1).to(torch.float32, memory_format=torch.contiguous_format, copy=True)
    return (x.mul_(1 / 255) if images.dtype == torch.uint8 else x).view(3, len(images), -1)


def transposed_planes(images: Tensor) -> Tensor:
    """A float32 copy [3, N, W, H]."""
    check_images(images)
    x = images.permute(1, 0, 3, 2).to(torch.float32, memory_format=torch.contiguous_format, copy=True)
    return x.mul_(1 / 255) if images.dtype == torch.uint8 else x


def from_planes(planes: Tensor, images: Tensor) -> Tensor:
    """Planes back to the shape of `images`."""
    n, c, h, w = images.shape
    return planes.view(c, n, h, w).transpose(0, 1).contiguous()


def per_image(name: str, value: float | Tensor, images: Tensor) -> Tensor:
    """A parameter as float32 [N, 1]."""
    x = torch.as_tensor(value, dtype=torch.float32, device=images.device)
    if x.ndim > 1 or (x.ndim == 1 and len(x) != len(images)):
        raise ValueError(f"{name} must be a number or a tensor [{len(images)}], one per image, got {tuple(x.shape)}")
    return x.expand(len(images))[:, None]
