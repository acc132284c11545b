"""Read volumes and labels with their geometry, and write masks on the grid of their image."""

from __future__ import annotations

from ssl_medseg.io.mask import write_mask
from ssl_medseg.io.read import read_grid, read_label, read_label_values, read_volume
from ssl_medseg.io.volume import Grid, ImageFile, Volume, grid_difference, join_channels

__all__ = [
    "Grid",
    "ImageFile",
    "Volume",
    "grid_difference",
    "join_channels",
    "read_grid",
    "read_label",
    "read_label_values",
    "read_volume",
    "write_mask",
]
