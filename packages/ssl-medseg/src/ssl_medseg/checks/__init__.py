"""Check a data set of volumes in one pass."""

from ssl_medseg.checks.examine import examine
from ssl_medseg.checks.repair import Fix
from ssl_medseg.checks.report import Report

__all__ = ["Fix", "Report", "examine"]
