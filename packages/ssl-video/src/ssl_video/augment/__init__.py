"""Weak and strong augmentation of clips: the same for all frames, drawn anew for every clip, step and view."""

from ssl_video.augment.clip_augment import ClipAugment
from ssl_video.augment.crops import WeakOptions, center_clip, spread_crops, weak_crop
from ssl_video.augment.strong import OPERATIONS, SETS, StrongOptions, strong_augment

__all__ = [
    "OPERATIONS",
    "SETS",
    "ClipAugment",
    "StrongOptions",
    "WeakOptions",
    "center_clip",
    "spread_crops",
    "strong_augment",
    "weak_crop",
]
