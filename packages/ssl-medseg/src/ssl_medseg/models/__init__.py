"""Networks that segment slices: the paper's U-Net or one of MONAI's as trunk, and two heads on its features."""

from ssl_medseg.models.network import (
    ContrastHead,
    JointNetwork,
    NetworkOptions,
    PlainUNet,
    SegmentationHead,
    SegmentationNetwork,
    UNet,
    build_network,
    settle_statistics,
)

__all__ = [
    "ContrastHead",
    "JointNetwork",
    "NetworkOptions",
    "PlainUNet",
    "SegmentationHead",
    "SegmentationNetwork",
    "UNet",
    "build_network",
    "settle_statistics",
]
