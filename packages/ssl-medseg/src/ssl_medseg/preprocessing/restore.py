"""From probabilities of slices back to the volume's own grid."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssl_medseg.preprocessing.geometry import Geometry
from ssl_medseg.preprocessing.interpolate import to_voxels


def restore(probabilities: Tensor, geometry: Geometry) -> NDArray[np.float32]:
    """Probabilities of all slices of a volume on the volume's own grid.

    Linear interpolation between pixels, as MONAI's ``Invertd`` does it; where a volume reaches beyond its slices by
    a pixel or more it is background.

    Args:
        probabilities: ``[S, C, H, W]``, of which class 0 is the background.
        geometry: of the slices.

    Returns:
        Float32 ``[C, X, Y, Z]`` in the file's own order of axes.
    """
    native = restore_slices(probabilities, geometry).float().cpu().numpy()
    return np.stack([place(native[:, c], geometry) for c in range(native.shape[1])])


def restore_slices(probabilities: Tensor, geometry: Geometry) -> Tensor:
    """Probabilities of some slices on the pixels their volume was stored with.

    Slices do not depend on each other, so that a large volume is restored a few at a time.

    Args:
        probabilities: ``[N, C, H, W]``, of which class 0 is the background.
        geometry: of their volume.

    Returns:
        ``[N, C, rows, columns]``, rows and columns being voxels of the volume.
    """
    native = to_voxels(probabilities, geometry)
    # Between the outermost pixel and the next, which is not there, a voxel has part of the weight: it is made whole.
    shown = to_voxels(torch.ones_like(probabilities[:1, 0]), geometry)
    native /= shown.clamp_min(torch.finfo(shown.dtype).tiny)
    native[:, 0] += shown == 0
    return native


def place(slices: NDArray[Any], geometry: Geometry) -> NDArray[Any]:
    """Slices ``[S, rows, columns]`` of a volume's own voxels as the volume ``[X, Y, Z]``."""
    volume = np.empty(geometry.shape, dtype=slices.dtype)
    geometry.to_slices(volume)[...] = slices
    return volume
