"""Augmentation of image batches, and the fixed transform for evaluation."""

from ssl_vision.augment.transforms import CropFlip, EvalTransform, SimCLRAugment

__all__ = ["CropFlip", "EvalTransform", "SimCLRAugment"]
