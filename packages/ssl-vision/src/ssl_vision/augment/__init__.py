"""Augmentation of batches of images, and the fixed transform of evaluation."""

from ssl_vision.augment.crop_flip import CropFlip
from ssl_vision.augment.evaluation import EvalTransform
from ssl_vision.augment.simclr import SimCLRAugment

__all__ = ["CropFlip", "EvalTransform", "SimCLRAugment"]
