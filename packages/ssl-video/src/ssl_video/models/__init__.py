"""Networks by name: SlowFast, X3D, R(2+1)D, CSN, MViT and R3D from PyTorchVideo and torchvision, and custom modules."""

from ssl_video.models.networks import NETWORKS, NetworkOptions, build_network

__all__ = ["NETWORKS", "NetworkOptions", "build_network"]
