"""Convert volumes to slices of a common size and spacing, and predictions back to the grid of the volume."""

from __future__ import annotations

from ssl_medseg.preprocessing.plan import PreprocessingOptions, choose_preprocessing
from ssl_medseg.preprocessing.prepare import (
    Geometry,
    Prepared,
    place,
    prepare,
    prepare_label,
    restore,
    restore_slices,
    share_outside,
    slice_geometry,
)
from ssl_medseg.preprocessing.settings import Preprocessing

__all__ = [
    "Geometry",
    "Prepared",
    "Preprocessing",
    "PreprocessingOptions",
    "choose_preprocessing",
    "place",
    "prepare",
    "prepare_label",
    "restore",
    "restore_slices",
    "share_outside",
    "slice_geometry",
]
