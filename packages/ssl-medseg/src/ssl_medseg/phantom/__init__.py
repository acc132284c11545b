"""Generated volumes that look like short-axis cine MRI of the heart: for the demo and for tests, nothing downloaded."""

from ssl_medseg.phantom.files import write_phantom
from ssl_medseg.phantom.scan import LABELS, PhantomCase, make_case

__all__ = ["LABELS", "PhantomCase", "make_case", "write_phantom"]
