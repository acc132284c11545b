"""Segmentation networks: a trunk (the paper's U-Net, a plain U-Net or a MONAI network) with two heads."""

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
