"""Networks that segment slices: the paper's U-Net or one of MONAI's as trunk, and two heads on its features."""

from ssl_medseg.models.network import ContrastHead, SegmentationHead, SegmentationNetwork, build_network
from ssl_medseg.models.options import NetworkOptions
from ssl_medseg.models.unet import PlainUNet, UNet, settle_statistics

__all__ = [
    "ContrastHead",
    "NetworkOptions",
    "PlainUNet",
    "SegmentationHead",
    "SegmentationNetwork",
    "UNet",
    "build_network",
    "settle_statistics",
]
