"""Where the training of a classifier begins: a pre-trained model, or a random network."""

from __future__ import annotations

from dataclasses import dataclass

from contrastive_core.errors import UserError
from ssl_vision.model_folder import Architecture, Pretrained, load_pretrained
from ssl_vision.models import Classifier, EncoderOptions

NONE = "none"
"""The name of the model that is none: random weights."""


@dataclass(frozen=True)
class Start:
    """What a classifier is built from: its architecture, and the weights of a pre-trained model if there is one."""

    architecture: Architecture
    weights: Pretrained | None = None

    def build(self, classes: int) -> Classifier:
        """The classifier on the CPU; what has no pre-trained weights is drawn, its linear layer is zero."""
        classifier = self.architecture.build(classes)
        if self.weights is not None:
            classifier.encoder.load_state_dict(self.weights.encoder.state_dict())
            if self.weights.head is not None:
                kept = self.weights.head.first_layers(self.architecture.from_layer)
                classifier.neck.load_state_dict(kept.state_dict())
        return classifier


def open_start(model: str, *, encoder: EncoderOptions | None, from_layer: int, image_size: int | None) -> Start:
    """Open what training begins with.

    Args:
        model: a pre-trained run folder or model folder; or ``none``: random weights.
        encoder: the network, if `model` is none; else it is the model's.
        from_layer: how many layers of the model's projection head to keep.
        image_size: side of the images in pixels; None takes the model's, or 32.

    Raises:
        UserError: no model there; an encoder beside a model that has another one; a layer that its head does not have.
    """
    if image_size is not None and image_size < 1:
        raise UserError(f"image_size is {image_size}; expected a number of pixels")
    if model == NONE:
        if from_layer:
            raise UserError(f"from_layer is {from_layer}, but without a pre-trained model there is no head; expected 0")
        return Start(Architecture(encoder or EncoderOptions(), image_size or 32))
    found = load_pretrained(model)
    if encoder is not None and encoder != found.options:
        raise UserError(
            f"{model}: its encoder is {found.options}, but {encoder} was asked for; leave the encoder out, or start "
            f"from {NONE!r}"
        )
    layers = 0 if found.head is None else len(found.head.layers)
    if not 0 <= from_layer <= layers:
        raise UserError(
            f"from_layer is {from_layer}, but {model} has a projection head of {layers} layers; expected 0 (the "
            f"encoder's features) to {layers}"
        )
    size = image_size or found.image_size
    if found.head is None or from_layer == 0:
        return Start(Architecture(found.options, size), found)
    return Start(Architecture(found.options, size, (layers, found.head.out_features), from_layer), found)
