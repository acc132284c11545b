"""What is wrong with a data set of volumes, found in one pass over it."""

from ssl_medseg.checking.examine import examine
from ssl_medseg.checking.options import Fix
from ssl_medseg.checking.report import Report

__all__ = ["Fix", "Report", "examine"]
