"""The augmentation of SimCLR on a batch of images: crop, flip, colour, grey, blur."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from ssl_vision.augment import ops_simclr
from ssl_vision.augment._images import check_ids, check_images, check_range
from ssl_vision.augment.arrange import Stage, arrange, stage_keys
from ssl_vision.augment.boxes import tensorflow_boxes
from ssl_vision.augment.draws import Draws, draw
from ssl_vision.augment.resample import blur_planes, crop_planes
from ssl_vision.augment.taps import Taps, keys_taps

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
        n, device = len(images), images.device
        taps_y, taps_x = self._taps(draws, device)
        keys = stage_keys(draws)
        amounts = torch.stack((draws.brightness, draws.contrast, draws.saturation, draws.hue, torch.zeros(n)))
        amounts = amounts.gather(0, torch.from_numpy(keys[:4])).to(device)[..., None]  # of each stage
        sigma = draws.sigma.to(device)
        out = torch.empty(n, 3, self.size, self.size, device=device)
        most = max(1, _BLOCK_VALUES // (3 * self.size**2)) if device.type == "cpu" else n
        for start in range(0, n, most):
            here = slice(start, min(start + most, n))
            stages = arrange(keys[:, here], device)
            first = stages[0].slot
            planes = crop_planes(
                images[here].index_select(0, first), taps_y.pick(here).pick(first), taps_x.pick(here).pick(first)
            )
            for stage, amount in zip(stages[:4], amounts[:, here], strict=True):
                planes = self._colour(planes, stage, amount, moved=stage is stages[0])
            self._finish(planes, stages[4], sigma[here], out[here])
        return out

    def _taps(self, draws: Draws, device: torch.device) -> tuple[Taps, Taps]:
        """Where the rows and the columns of every view come from."""
        top, left, height, width = draws.boxes.to(device).unbind(1)
        flip = draws.flip.to(device)
        both = keys_taps(
            torch.cat((top, left)),
            torch.cat((height, width)),
            out=self.size,
            flip=torch.cat((torch.zeros_like(flip), flip)),
        )
        n = len(top)
        return both.pick(slice(0, n)), both.pick(slice(n, None))

    def _colour(self, planes: Tensor, stage: Stage, amount: Tensor, *, moved: bool) -> Tensor:
        """One colour operation on every image, and the clip after it; an image without jitter is clipped only."""
        if stage.move is not None and not moved:
            planes = planes.index_select(1, stage.move)
        x = planes.view(3, planes.shape[1], -1)
        amount = amount[stage.slot]
        for op, run in zip(self._jitter_ops, stage.runs, strict=False):
            if run.stop > run.start:
                op(x[:, run], amount[run])
        x.clamp_(0, 1)
        return planes

    def _finish(self, planes: Tensor, stage: Stage, sigma: Tensor, out: Tensor) -> None:
        """Take the colour away, blur, turn upright, and put the images where they belong."""
        if stage.move is not None:
            planes = planes.index_select(1, stage.move)
        _, gray, both, blur, _ = stage.runs
        if both.stop > gray.start:
            ops_simclr.grayscale_(planes.view(3, len(out), -1)[:, gray.start : both.stop])
        result = torch.empty_like(out) if len(out) > 1 else out
        sharp = slice(0, both.start)
        result[sharp].copy_(planes[:, sharp].permute(1, 0, 3, 2))
        if blur.stop > both.start:
            blurred = slice(both.start, blur.stop)
            radius = self.size // 10 // 2
            result[blurred] = blur_planes(
                planes, sigma[stage.slot[blurred]], which=blurred, radius=radius, padding="zero"
            ).clamp_(0, 1)
        if len(out) > 1:
            torch.index_select(result, 0, stage.slot.argsort(), out=out)
