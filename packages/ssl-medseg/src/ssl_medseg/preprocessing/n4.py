"""Correction of the bias field of MR images by N4, with SimpleITK."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ssl_medseg.volumes.extras import import_extra

_LEVELS = (50, 50, 50, 50)
_THRESHOLD = 0.001


def correct_bias_field(array: NDArray[np.float32], *, shrink: int) -> NDArray[np.float32]:
    """A volume divided by its estimated bias field.

    Four levels of up to 50 iterations, convergence at 0.001, without a mask, as in the released code (with
    `shrink` 1). N4 works with logarithms, so voxels at or below 0 take no part in the estimate.

    Args:
        array: ``[X, Y, Z]``.
        shrink: the field is estimated on every n-th voxel along each axis that has enough of them; it is smooth, so
            that little is lost, and evaluated on all voxels.
    """
    sitk = import_extra("SimpleITK", extra="simpleitk", needed_for="N4 bias field correction")
    image = sitk.GetImageFromArray(np.ascontiguousarray(array, dtype=np.float32))
    factors = [max(1, min(shrink, n // 16)) for n in image.GetSize()]
    small = sitk.Shrink(image, factors)
    n4 = sitk.N4BiasFieldCorrectionImageFilter()
    n4.SetMaximumNumberOfIterations(_LEVELS)
    n4.SetConvergenceThreshold(_THRESHOLD)
    n4.Execute(small)
    field = sitk.GetArrayFromImage(sitk.Exp(n4.GetLogBiasFieldAsImage(image)))
    return np.asarray(array / field, dtype=np.float32)
