"""Augmentation of batches of images, and the fixed transform of evaluation."""

from ssl_vision.augment.transforms import CropFlip, EvalTransform, SimCLRAugment

__all__ = ["CropFlip", "EvalTransform", "SimCLRAugment"]
