"""What is wrong with an image data set, found in one pass over it."""

from ssl_vision.checking.examine import examine
from ssl_vision.checking.report import Finding, Item, Report

__all__ = ["Finding", "Item", "Report", "examine"]
