"""Describe a segmenter for export: its program, its inputs and its outputs."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from contrastive_core.training.export import Program
from ssl_medseg.models.model_folder import Segmenter

PREPARATION = (
    "For each volume: resample the `channels`, in this order, to the grid of the first; reorder and flip the axes to "
    "`orientation` (or to the axes `frame`; without both, keep them as stored). For each channel: fill voxels that "
    "are not finite with the smallest value if `fill_nan`, raise padding (below -1500) to -1024 if the smallest "
    "other value is below -512 (CT), else to that value, correct "
    "the bias field with N4 if `n4`, and scale so that the `percentiles` of all voxels become 0 and 1, without "
    "clipping. Slices are perpendicular to `slice_axis`. Along each axis of a slice, one pixel is `step` voxels: "
    "`spacing` in mm divided by the voxel size, or, with `fit`, such that the longer side has `fit` pixels. If "
    "`antialias`, smooth with a Gaussian of sigma (step - 1) / 2 voxels where step > 1. Resample linearly, with the "
    "first pixel at the first voxel, and crop or pad with zeros around the centre to `size`. "
    "ssl_medseg.preprocessing.Preprocessing.from_json reads these settings, and ssl_medseg.preprocessing.prepare "
    "follows them"
)
INVERSION = (
    "Softmax over the classes. If `mirror`, average the probabilities of a slice and its mirror images along each and "
    "both of its axes, mirrored back. Map the probabilities linearly to the voxels, where those outside of the slices "
    "are background, and take the most probable class. Of the classes in `largest`, keep only the largest component "
    "of the volume, connected through faces. Replace class numbers by `values`"
)


def program_of(segmenter: Segmenter, source: str) -> Program:
    """Return the network as a program that maps slices ``[N, K, H, W]`` to logits ``[N, C, H, W]``.

    K is the number of channels, C the number of classes; H and W are the size of the training slices.

    Args:
        segmenter: Model to export.
        source: Name of the model in errors.
    """
    network = segmenter.network.cpu().eval().to(memory_format=torch.contiguous_format)
    size, channels = segmenter.preprocessing.size, len(segmenter.preprocessing.channels)

    def example(count: int) -> Tensor:
        generator = torch.Generator().manual_seed(count)
        return torch.rand(count, channels, *size, generator=generator)

    return Program(
        network.requires_grad_(False), source, segmenter.options.name, "slices", "logits", example, package="ssl_medseg"
    )


def card_of(segmenter: Segmenter, file: Path) -> dict[str, Any]:
    """Return the description of inputs and outputs that is written into the exported file and beside it."""
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
            "inversion": INVERSION,
            "refinement": asdict(segmenter.refinement),
        },
        "network": asdict(segmenter.options),
    }
