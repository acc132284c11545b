"""Accuracy on held-out images during training."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from contrastive_core.training import Run
from ssl_vision.data import ImageSet, Subset
from ssl_vision.evaluation.features import evaluation_batches, outputs


class Validation:
    """Accuracy on held-out images while training goes on; the processes share the work."""

    def __init__(self, run: Run, images: ImageSet, *, size: int, batch_size: int = 256) -> None:
        self._run, self._total = run, len(images)
        self._images = Subset(images, range(run.rank, len(images), run.world_size))
        self._labels = images.labels()[run.rank :: run.world_size].to(run.device)
        self._size, self._batch_size = size, batch_size

    @torch.no_grad()
    def accuracy(self, model: nn.Module) -> Tensor:
        """Share of the images whose most likely class is theirs, batch norm in inference mode; in [0, 1]."""
        batches = evaluation_batches(self._images, size=self._size, batch_size=self._batch_size)
        right, start = torch.zeros((), device=self._run.device), 0
        for logits in outputs(model, batches, device=self._run.device):
            right += (logits.argmax(dim=1) == self._labels[start : start + len(logits)]).sum()
            start += len(logits)
        model.train()
        return torch.as_tensor(self._run.fabric.all_reduce(right, reduce_op="sum")) / self._total
