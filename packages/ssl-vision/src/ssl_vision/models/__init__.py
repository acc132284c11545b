"""Encoders - the official ResNets, torchvision's and the user's own - and the classifier built on one."""

from ssl_vision.models.classifier import Classifier
from ssl_vision.models.encoder import EncoderOptions, build_encoder
from ssl_vision.models.resnet import ResNet, resnet

__all__ = ["Classifier", "EncoderOptions", "ResNet", "build_encoder", "resnet"]
