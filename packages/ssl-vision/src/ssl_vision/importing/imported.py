"""Imported weights from any source, and the networks built from them."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from contrastive_core.errors import UserError
from contrastive_core.heads import ProjectionHead
from ssl_vision.models import Classifier, EncoderOptions, build_encoder
from ssl_vision.models.encoder import core_network


@dataclass
class Imported:
    """Imported weights, under the names of this package.

    Attributes:
        options: Encoder options.
        image_size: Side of the images that it is designed for, in pixels.
        encoder: State of the encoder's network, without its normalisation.
        head: States of the layers of the projection head, if there is one.
        classifier: Weight ``[classes, features]`` and bias ``[classes]`` of a linear classifier, if there is one.
        classifier_names: Names of these two in the source.
        left_out: Names in the source of tensors that are not imported.
        notes: Assumptions that the source does not confirm.
    """

    options: EncoderOptions
    image_size: int
    encoder: dict[str, Tensor]
    head: dict[str, Tensor] = field(default_factory=dict)
    classifier: tuple[Tensor, Tensor] | None = None
    classifier_names: tuple[str, str] | None = None
    left_out: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def build_encoder(self) -> nn.Module:
        """Build the encoder with its weights, in inference mode."""
        encoder = build_encoder(self.options, image_size=self.image_size)
        core_network(encoder).load_state_dict(self.encoder)
        return encoder.eval()

    def build_head(self) -> ProjectionHead | None:
        """Build the projection head with its weights, in inference mode."""
        if not self.head:
            return None
        weights = [tensor for name, tensor in self.head.items() if name.endswith("linear.weight")]
        features, out = weights[0].shape[1], weights[-1].shape[0]
        head = ProjectionHead(features, out, layers=len(weights))
        head.load_state_dict(self.head)
        return head.eval()

    def build_classifier(self, layer: int) -> Classifier:
        """Build the classifier on the output of a layer of the head (0: on the features), in inference mode.

        Raises:
            UserError: The layer does not exist, or its width does not fit the classifier.
        """
        if self.classifier is None:
            raise UserError("the source has no classifier")
        weight, bias = self.classifier
        encoder, head = self.build_encoder(), self.build_head()
        layers = 0 if head is None else len(head.layers)
        if not 0 <= layer <= layers:
            raise UserError(f"the classifier reads layer {layer} of a projection head that has {layers} layers")
        model = Classifier(encoder, nn.Sequential() if head is None else head.first_layers(layer), len(weight))
        if model.fc.weight.shape != weight.shape:
            raise UserError(
                f"the classifier takes {weight.shape[1]} features, but layer {layer} of the projection head has "
                f"{model.fc.in_features}; choose the layer that it was trained on"
            )
        with torch.no_grad():
            model.fc.weight.copy_(weight)
            model.fc.bias.copy_(bias)
        return model.eval()
