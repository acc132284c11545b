"""Prepared cases made in memory: squares on a dark ground."""

from __future__ import annotations

import numpy as np
import torch

from ssl_medseg.io import Grid
from ssl_medseg.preprocessing import Preprocessing, slice_geometry
from ssl_medseg.preprocessing.cases import PreparedCase


def toy_case(name: str, *, slices: int = 6, size: int = 32, seed: int = 0, labelled: bool = True) -> PreparedCase:
    """Two squares of different brightness; the first and last slice lack the second one."""
    noise = torch.Generator().manual_seed(seed)
    label = torch.zeros(slices, size, size, dtype=torch.uint8)
    first, second = size // 8 + seed % 3, size // 2 + seed % 4
    label[:, first : first + size // 4, first : first + size // 4] = 1
    label[1:-1, second : second + size // 4, second : second + size // 4] = 2
    images = label[:, None] * 0.4 + 0.05 * torch.randn(slices, 1, size, size, generator=noise)
    grid = Grid((size, size, slices), np.diag([1.0, 1.0, 8.0, 1.0]))
    geometry, _ = slice_geometry(grid, Preprocessing(size=(size, size)))
    return PreparedCase(name, name, images, label if labelled else None, geometry)
