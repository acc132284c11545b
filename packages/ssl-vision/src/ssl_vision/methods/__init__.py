"""The methods as modules, for loops of one's own."""

from ssl_vision.methods.momentum import MomentumMemory
from ssl_vision.methods.simclr import SimCLR

__all__ = ["MomentumMemory", "SimCLR"]
