"""The methods as modules, for custom training loops."""

from ssl_vision.methods.simclr import MomentumMemory, SimCLR

__all__ = ["MomentumMemory", "SimCLR"]
