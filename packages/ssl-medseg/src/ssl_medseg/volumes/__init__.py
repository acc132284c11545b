"""Volumes in files: read with their geometry, and masks written on the grid of the image they belong to."""

from __future__ import annotations

from ssl_medseg.volumes.mask import write_mask
from ssl_medseg.volumes.read import read_grid, read_label, read_label_values, read_volume
from ssl_medseg.volumes.volume import Grid, Volume, grid_difference

__all__ = [
    "Grid",
    "Volume",
    "grid_difference",
    "read_grid",
    "read_label",
    "read_label_values",
    "read_volume",
    "write_mask",
]
