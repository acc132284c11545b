"""The augmentation of SimCLR on a batch of images: crop, flip, colour, grey, blur."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn

from ssl_vision.augment import ops_simclr
from ssl_vision.augment._images import check_ids, check_images, check_range, to_float
from ssl_vision.augment.blur import blur_transposed
from ssl_vision.augment.boxes import tensorflow_boxes
from ssl_vision.augment.draws import ORDERS, Draws, draw
from ssl_vision.augment.resample import keys_taps, resample

# Images of one block are worked on one operation after the other while they stay in the processor's cache.
_BLOCK_VALUES = 1 << 18


class SimCLRAugment(nn.Module):
    """One random view of every image."""

    def __init__(
        self,
        size: int,
        *,
        strength: float = 1.0,
        blur: bool = True,
        ops: Literal["simclr", "torchvision"] = "simclr",
        flip: bool = True,
        gray: float = 0.2,
        jitter: float = 0.8,
        brightness: Literal["multiplicative", "additive"] = "multiplicative",
        sigma: Literal["per_image", "per_batch"] = "per_image",
    ) -> None:
        super().__init__()
        self.size = size
        self.strength = strength
        self.blur = blur
        self.ops = ops
        self.flip = flip
        self.gray = gray
        self.jitter = jitter
        self.brightness = brightness
        self.sigma = sigma
        change_brightness = ops_simclr.add_brightness_ if brightness == "additive" else ops_simclr.brightness_
        self._jitter_ops = (change_brightness, ops_simclr.contrast_, ops_simclr.saturation_, ops_simclr.hue_)

    @torch.no_grad()
    def forward(self, images: Tensor, *, seed: int, ids: Tensor) -> Tensor:
        """A view of each image.

        Args:
            images: uint8 [N, 3, H, W], or floating point with values in [0, 1].
            seed: seed of this view; give the two views of a step different ones.
            ids: identities of the images, int64 [N].

        Returns:
            float32 [N, 3, size, size] in [0, 1], on the device of the images.
        """
        check_images(images)
        check_ids(ids, images)
        check_range(images)
        return self.apply_draws(images, self.draw(images, seed=seed, ids=ids.cpu()))

    def draw(self, images: Tensor, *, seed: int, ids: Tensor) -> Draws:
        """The random numbers of `forward`."""
        n, _, h, w = images.shape
        boxes = tensorflow_boxes(torch.full((n,), h), torch.full((n,), w), seed=seed, ids=ids)
        return draw(
            boxes,
            seed=seed,
            ids=ids,
            strength=self.strength,
            additive=self.brightness == "additive",
            flip=0.5 if self.flip else 0.0,
            jitter=self.jitter,
            gray=self.gray,
            blur=0.5 if self.blur else 0.0,
            one_sigma=self.sigma == "per_batch",
        )

    @torch.no_grad()
    def apply_draws(self, images: Tensor, draws: Draws) -> Tensor:
        """The views that `draws` describe."""
        out = torch.empty(len(images), 3, self.size, self.size, device=images.device)
        for which, order, gray, blur in _blocks(draws, values_per_image=3 * self.size**2):
            out.index_copy_(0, which.to(out.device), self._block(images, draws, which, order, gray, blur))
        return out

    def _block(
        self, images: Tensor, draws: Draws, which: Tensor, order: int | None, gray: slice, blur: slice
    ) -> Tensor:
        """Views of images that share one order of colour operations; `gray` and `blur` are runs among them."""
        device = images.device
        box = draws.boxes[which].to(device)
        taps_y = keys_taps(box[:, 0], box[:, 2], out=self.size)
        taps_x = keys_taps(box[:, 1], box[:, 3], out=self.size, flip=draws.flip[which].to(device))
        planes = resample(to_float(images[which.to(device)]), taps_y, taps_x)
        x = planes.view(3, len(which), -1)
        if order is not None:
            drawn = torch.stack((draws.brightness, draws.contrast, draws.saturation, draws.hue))[:, which, None].to(
                device
            )
            for op in ORDERS[order]:
                self._jitter_ops[op](x, drawn[op]).clamp_(0, 1)
        ops_simclr.grayscale_(x[:, gray])
        x.clamp_(0, 1)
        result = planes.permute(1, 0, 3, 2).contiguous()
        sigma = draws.sigma[which][blur].to(device)
        if len(sigma):
            radius = self.size // 10 // 2
            result[blur] = blur_transposed(
                planes, sigma, radius=radius, padding="zero", first=blur.start, total=len(which)
            ).clamp_(0, 1)
        return result


def _blocks(draws: Draws, *, values_per_image: int) -> Iterator[tuple[Tensor, int | None, slice, slice]]:
    """Split a batch into blocks of images with one order of colour operations, each about `_BLOCK_VALUES` large.

    Within a block the images to turn grey, and those to blur, are neighbours.
    """
    order = torch.where(draws.jitter, draws.order, len(ORDERS))
    blur = draws.blur.long()
    key = order * 4 + torch.where(draws.gray, 1 + blur, 3 * blur)  # plain, grey, grey and blurred, blurred
    rank = torch.argsort(key, stable=True)
    most = max(1, _BLOCK_VALUES // values_per_image)
    counts = torch.bincount(order, minlength=len(ORDERS) + 1).tolist()
    start = 0
    for number, count in enumerate(counts):
        for first in range(start, start + count, most):
            which = rank[first : min(first + most, start + count)]
            yield which, number if number < len(ORDERS) else None, _run(draws.gray[which]), _run(draws.blur[which])
        start += count


def _run(flags: Tensor) -> slice:
    """The one run of true flags."""
    places = flags.nonzero()[:, 0]
    return slice(int(places[0]), int(places[-1]) + 1) if len(places) else slice(0, 0)
