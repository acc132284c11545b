"""From a volume to slices of one size and spacing, and from the network's answer back to the volume's own grid."""

from __future__ import annotations

from ssl_medseg.preprocessing.choose import PreprocessingOptions, choose_preprocessing
from ssl_medseg.preprocessing.geometry import Geometry, slice_geometry
from ssl_medseg.preprocessing.prepare import Prepared, prepare, prepare_label, share_outside
from ssl_medseg.preprocessing.restore import place, restore, restore_slices
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
