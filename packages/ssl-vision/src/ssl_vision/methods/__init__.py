"""The methods as modules, for training loops of one's own."""

from ssl_vision.methods.simclr import MomentumMemory, SimCLR

__all__ = ["MomentumMemory", "SimCLR"]
