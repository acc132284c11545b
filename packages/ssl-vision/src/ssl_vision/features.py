"""Features of images under a frozen encoder."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from contrastive_core.errors import UserError
from ssl_vision.augment import EvalTransform
from ssl_vision.data import ImageSet
from ssl_vision.model_folder import LoadedModel


def evaluation_batches(images: ImageSet, *, size: int, batch_size: int) -> Iterator[Tensor]:
    """Batches ``[n, 3, size, size]`` in [0, 1], in the order of the set: central crop, or the whole of small images."""
    transform = EvalTransform(size)
    for start in range(0, len(images), batch_size):
        yield transform([images.read(i) for i in range(start, min(start + batch_size, len(images)))])


@torch.no_grad()
def extract(model: LoadedModel, images: ImageSet, *, batch_size: int = 512) -> Tensor:
    """Features ``[N, D]`` of all images, float32, batch norm in inference mode.

    Raises:
        UserError: no images, or an image that cannot be read.
    """
    if len(images) == 0:
        raise UserError("there are no images to compute features of")
    encoder = model.encoder.eval()
    features = []
    for batch in evaluation_batches(images, size=model.image_size, batch_size=batch_size):
        pictures = batch.to(model.device, memory_format=torch.channels_last)
        features.append(encoder(pictures).float())
    return torch.cat(features)
