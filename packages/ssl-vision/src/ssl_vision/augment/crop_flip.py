"""Random resized crop and flip: the training augmentation of linear evaluation and fine-tuning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from ssl_vision.augment._images import check_batch, check_choice, check_size, sizes
from ssl_vision.augment.draws import PLAIN
from ssl_vision.augment.render import render
from ssl_vision.augment.simclr import OPERATIONS


class CropFlip(nn.Module):
    """Random resized crop, and flip with probability 1/2; no colour and no blur (SimCLR, appendix B.5 and B.6).

    Crop, resize and determinism are those of `SimCLRAugment`; the result is clipped to [0, 1].
    """

    def __init__(self, size: int, *, ops: Literal["simclr", "torchvision"] = "simclr") -> None:
        super().__init__()
        check_size(size)
        check_choice("ops", ops, tuple(OPERATIONS))
        self.size = size
        self.ops = ops

    def forward(self, images: Tensor | Sequence[Tensor], *, seed: int, ids: Tensor) -> Tensor:
        """Arguments and result are those of `SimCLRAugment.forward`."""
        check_batch(images, ids)
        ids = ids.cpu()
        boxes = OPERATIONS[self.ops].boxes(*sizes(images), seed=seed, ids=ids)
        return render(images, PLAIN.draw(boxes, seed=seed, ids=ids), size=self.size, ops=OPERATIONS[self.ops])

    def extra_repr(self) -> str:
        """What `print` shows."""
        return f"size={self.size}, ops={self.ops!r}"
