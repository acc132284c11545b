"""A segmenter to export, and what the program that opens it must know."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from contrastive_core.training.export import Program
from ssl_medseg.models.checkpoint import Segmenter

PREPARATION = (
    "Per volume: `channels` in their order, resampled to the grid of the first; of each channel the percentiles "
    "`percentiles` of all voxels to 0 and 1, without clipping; per slice: resampled linearly to `spacing` mm (the "
    "first pixel on the first voxel), cropped or padded with zeros to `size` around the centre. See "
    "ssl_medseg.preprocessing, whose Preprocessing.from_json reads these settings"
)


def program_of(segmenter: Segmenter, source: str) -> Program:
    """The network as a program: slices ``[N, K, H, W]`` to logits ``[N, C, H, W]``, of the size it was trained with."""
    network = segmenter.network.cpu().eval().to(memory_format=torch.contiguous_format)
    size, channels = segmenter.preprocessing.size, len(segmenter.preprocessing.channels)

    def example(count: int) -> Tensor:
        generator = torch.Generator().manual_seed(count)
        return torch.rand(count, channels, *size, generator=generator)

    return Program(
        network.requires_grad_(False), source, segmenter.options.name, "slices", "logits", example, package="ssl_medseg"
    )


def card_of(segmenter: Segmenter, file: Path) -> dict[str, Any]:
    """What the program that opens the file must know; it is written into the file and beside it."""
    height, width = segmenter.preprocessing.size
    return {
        "format": "ssl-medseg export 1",
        "file": file.name,
        "input": {
            "name": "slices",
            "shape": ["batch", len(segmenter.preprocessing.channels), height, width],
            "channels": list(segmenter.preprocessing.channels),
            "dtype": "float32",
            "preparation": PREPARATION,
            "preprocessing": segmenter.preprocessing.to_json(),
        },
        "output": {
            "name": "logits",
            "shape": ["batch", len(segmenter.labels), height, width],
            "classes": segmenter.labels.to_json(),
        },
        "network": asdict(segmenter.options),
    }
