"""Networks: the Slow pathway, PyTorchVideo's X3D, torchvision's R3D-18; any module of your own does as well."""

from ssl_video.models.networks import NETWORKS, NetworkOptions, build_network

__all__ = ["NETWORKS", "NetworkOptions", "build_network"]
