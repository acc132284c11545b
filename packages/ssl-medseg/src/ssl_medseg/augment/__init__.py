"""Augmentation of slices: a whole batch at once, every image by draws of its own that are a function of its id."""

from ssl_medseg.augment.intensity import jitter_intensity
from ssl_medseg.augment.options import AugmentOptions
from ssl_medseg.augment.spatial import deform

__all__ = ["AugmentOptions", "deform", "jitter_intensity"]
