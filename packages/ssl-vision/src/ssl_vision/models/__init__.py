"""Encoders: the official ResNets, torchvision's and the user's own."""

from ssl_vision.models.encoder import EncoderOptions, build_encoder
from ssl_vision.models.resnet import ResNet, resnet

__all__ = ["EncoderOptions", "ResNet", "build_encoder", "resnet"]
