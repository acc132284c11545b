"""What is wrong with an image data set, found in one pass over it."""

from contrastive_core.app.checks import Finding, Item
from ssl_vision.checking.examine import examine
from ssl_vision.checking.report import Report

__all__ = ["Finding", "Item", "Report", "examine"]
