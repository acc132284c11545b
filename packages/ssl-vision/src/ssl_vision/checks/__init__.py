"""Find all problems of an image data set in one pass."""

from contrastive_core.app.checks import Finding, Item
from ssl_vision.checks.examine import examine
from ssl_vision.checks.report import Report

__all__ = ["Finding", "Item", "Report", "examine"]
