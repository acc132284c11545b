"""A predicted mask on its image, where there is no truth to compare with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ssl_medseg.preprocessing.geometry import slice_axis
from ssl_medseg.reporting.orientation import view
from ssl_medseg.reporting.overlay import Sheet, sheet_figure
from ssl_medseg.volumes import Volume


def mask_sheet(
    volume: Volume, classes: NDArray[np.uint8], *, name: str, structures: Sequence[str], slices: int = 8
) -> Figure:
    """Slices of a volume, above as they are, beneath with the mask.

    Args:
        volume: the image.
        classes: ``[X, Y, Z]``, 0 the background.
        name: of the image.
        structures: names of the classes from 1.
        slices: how many are shown.
    """
    grid = volume.grid
    found = [f"{s}: {_amount(int((classes == k).sum()), volume)}" for k, s in enumerate(structures, 1)]
    sheet = Sheet(
        title=name,
        subtitle="; ".join(found),
        image=volume.array,
        masks={"predicted": classes},
        structures=structures,
        view=view(grid.affine, slice_axis(grid), known=grid.spacing_known),
    )
    return sheet_figure(sheet, slices=slices)


def _amount(voxels: int, volume: Volume) -> str:
    if not volume.grid.spacing_known:
        return f"{voxels:,} voxels"
    return f"{voxels * abs(float(np.linalg.det(volume.affine[:3, :3]))) / 1000:.1f} mL"
