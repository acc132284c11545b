"""The `model/` folder of a run: an encoder that evaluation, prediction and export can open."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from contrastive_core.errors import UserError
from contrastive_core.train import Run, load_model
from ssl_vision.methods import SimCLR
from ssl_vision.models import EncoderOptions, build_encoder

PIXELS = "pixels"
"""The name of the model that has nothing to learn: an image's pixels are its features."""

_FORMAT = "ssl-vision encoder 1"


@dataclass(frozen=True)
class LoadedModel:
    """An encoder on its device, with the size of images it takes."""

    encoder: nn.Module
    image_size: int
    device: torch.device


class _Pixels(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)


def save_encoder(
    run: Run, model: SimCLR, *, encoder: EncoderOptions, image_size: int, epoch: int, folder: str = "model"
) -> Path:
    """Write encoder and head to the run's folder."""
    metadata = {"format": _FORMAT, "encoder": asdict(encoder), "image_size": image_size, "epoch": epoch}
    return run.save_model(dict(model.state_dict()), metadata, folder=folder)


def choose_device(name: str) -> torch.device:
    """The device of that name; ``auto`` takes CUDA, then Apple's MPS, then the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {name!r} cannot be used here: {error}. Use auto, cpu, cuda or mps") from error
    return device


def load_encoder(model: str, *, device: str = "auto", image_size: int = 32) -> LoadedModel:
    """Open a run folder or a model folder; ``pixels`` needs none and takes `image_size`.

    Raises:
        UserError: no model there, a damaged one, or one of another kind.
    """
    place = choose_device(device)
    if model == PIXELS:
        return LoadedModel(_Pixels(), image_size, place)
    folder = Path(model)
    if (folder / "model").is_dir():
        folder = folder / "model"
    tensors, metadata = load_model(folder)
    if metadata.get("format") != _FORMAT:
        raise UserError(
            f"{folder}: found a model of format {metadata.get('format')!r}, expected {_FORMAT!r}; "
            "point at the out folder of `ssl-vision pretrain`"
        )
    size = int(str(metadata["image_size"]))
    described = metadata["encoder"]
    if not isinstance(described, dict):
        raise UserError(f"{folder}: model.json does not describe an encoder; the file was changed by hand")
    encoder = build_encoder(EncoderOptions(**described), image_size=size)
    prefix = "encoder."
    encoder.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
    return LoadedModel(encoder.eval().to(place).to(memory_format=torch.channels_last), size, place)
