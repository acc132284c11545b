"""Encoders - the official ResNets, those of torchvision and timm, and custom ones - and classifiers built on them."""

from ssl_vision.models.classifier import Classifier
from ssl_vision.models.encoder import EncoderOptions, build_encoder
from ssl_vision.models.resnet import ResNet, resnet

__all__ = ["Classifier", "EncoderOptions", "ResNet", "build_encoder", "resnet"]
