"""A model to export, and what the program that opens it must know: what goes in, what comes out."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from contrastive_core.errors import UserError
from contrastive_core.training import load_model
from contrastive_core.training.export import Program
from ssl_vision.model_folder import (
    CLASSIFIER_FORMAT,
    PIXELS,
    load_architecture,
    load_classifier,
    load_pretrained,
)
from ssl_vision.models import EncoderOptions


@dataclass(frozen=True)
class Exportable:
    """A model in inference mode on the CPU.

    Attributes:
        source: the folder it was opened from.
        module: maps images ``[N, 3, size, size]`` in [0, 1] to logits ``[N, C]``, or to features ``[N, D]``.
        options: its encoder.
        image_size: side of the images in pixels.
        classes: names of the classes in the order of the logits; None for an encoder, which gives features.
        from_layer: how many layers of a projection head stand between features and logits.
    """

    source: str
    module: nn.Module
    options: EncoderOptions
    image_size: int
    classes: list[str] | None
    from_layer: int = 0

    @property
    def output(self) -> str:
        """What the module gives: ``logits`` or ``features``."""
        return "features" if self.classes is None else "logits"

    def images(self, count: int) -> Tensor:
        """Images of noise to try it with, the same for the same count."""
        generator = torch.Generator().manual_seed(count)
        return torch.rand(count, 3, self.image_size, self.image_size, generator=generator)

    @torch.no_grad()
    def card(self, file: Path, *, normalisation: object) -> dict[str, Any]:
        """What the program that opens the file must know; it is written into the file and beside it."""
        width = self.module(self.images(1)).shape[1]
        return {
            "format": "ssl-vision export 1",
            "file": file.name,
            "input": {
                "name": "images",
                "shape": ["batch", 3, self.image_size, self.image_size],
                "dtype": "float32",
                "channels": "RGB",
                "range": [0.0, 1.0],
                "normalisation": normalisation,
                "preparation": "central square of 0.875 of the shorter side, resized bicubically without antialiasing; "
                "images of at most 32 px whole (ssl_vision.augment.EvalTransform)",
            },
            "output": {"name": self.output, "shape": ["batch", width]},
            "classes": self.classes,
            "encoder": asdict(self.options),
            "model": self.source,
        }

    @property
    def program(self) -> Program:
        """For the files that hold its computation."""
        return Program(
            self.module, self.source, self.options.name, "images", self.output, self.images, package="ssl_vision"
        )


def open_exportable(model: str) -> Exportable:
    """Open a run folder or a model folder, of an encoder or a classifier.

    Raises:
        UserError: no model there, or a damaged one.
    """
    if model == PIXELS:
        raise UserError("pixels are no model with weights; export a run folder or a model folder")
    if load_model(model)[1].get("format") == CLASSIFIER_FORMAT:
        classifier, architecture = load_classifier(model, device="cpu"), load_architecture(model)
        return Exportable(
            model,
            _plain(classifier.model),
            architecture.encoder,
            classifier.image_size,
            classifier.classes,
            architecture.from_layer,
        )
    found = load_pretrained(model)
    return Exportable(model, _plain(found.encoder.eval()), found.options, found.image_size, None)


def _plain(module: nn.Module) -> nn.Module:
    return module.to(memory_format=torch.contiguous_format).requires_grad_(False)
