"""`ssl-video export`: export a trained network to a file for other programs."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from contrastive_core.errors import UserError
from contrastive_core.training.export import Program, put_in_place, write_exported_program, write_onnx
from contrastive_core.training.model_file import write_tensors
from contrastive_core.training.outputs import run_files
from ssl_video.models import NetworkOptions, build_network
from ssl_video.models.model_folder import Recognizer, load_recognizer
from ssl_video.models.networks import join_batchnorm, logits_in

_SUFFIXES = (".onnx", ".pt2", ".safetensors")


def export(
    model: str,
    out: Path,
    *,
    view: str | None = None,
    image_size: int = 0,
    network: str | None = None,
    overwrite: bool = False,
) -> str:
    """Export a network to a file for other programs, and verify that the file gives the model's outputs.

    The suffix of the file selects the format: ``.onnx`` for ONNX Runtime and others (any batch size; needs the extra
    ``export``), ``.pt2`` for `torch.export.load`, ``.safetensors`` for `load_state_dict` of the same network in
    PyTorchVideo or torchvision. The file holds the network of one view, with the batch norm of that view; it runs as
    fast as an ordinary network.

    The input is ``[N, 3, T, S, S]`` in [0, 1], the output logits. Normalisation is part of .onnx and .pt2 files; for
    .safetensors, the caller normalises. A JSON file beside the file records this, together with the classes, the frames
    and the differences found.

    Args:
        model: Run folder or model folder to use.
        out: File to write.
        view: View whose batch norm statistics the network uses; by default rgb, the frames.
        image_size: Side in pixels of the pictures that .onnx and .pt2 take; 0 for the size of the training crops.
        network: Custom network, ``package.module:function``, for a model that was trained with it; its code is run.
        overwrite: Whether to replace files that this command did not write.

    Returns:
        Message with the file and the result of the comparison.
    """
    out = Path(out)
    if out.suffix not in _SUFFIXES:
        raise UserError(f"{out}: found the suffix {out.suffix!r}, expected one of {', '.join(_SUFFIXES)}")
    recognizer = load_recognizer(model, device="cpu", network=network)
    recipe = recognizer.recipe
    view_name = recipe.views[0] if view is None else view
    if view_name not in recipe.views:
        raise UserError(f"view is {view_name!r}; the network was trained on {', '.join(recipe.views)}")
    side = image_size or recipe.size
    plain = join_batchnorm(recognizer.network, view_name).requires_grad_(False).eval()

    def example(count: int) -> Tensor:
        generator = torch.Generator().manual_seed(count)
        return torch.rand(count, 3, recipe.clip.frames, side, side, generator=generator)

    def write(file: Path) -> dict[str, Any]:
        card = _card(recognizer, model, file, view=view_name, side=side)
        if out.suffix == ".safetensors":
            return _weights(plain, recognizer, file, card, example(2))
        program = Program(
            _Normalised(plain, recipe.network).eval(),
            model,
            recipe.network.name,
            "clips",
            "logits",
            example,
            package="ssl_video",
        )
        return (write_onnx if out.suffix == ".onnx" else write_exported_program)(program, file, card)

    card = put_in_place(
        out, write, network=plain, command="ssl-video export", inputs=run_files(model), overwrite=overwrite
    )
    checks = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in card["checked"].items())
    return f"written to {out} and {out.name}.json: logits for {recipe.clip.frames} frames of {side} px; {checks}"


class _Normalised(nn.Module):
    # Not called mean: the exporter of torch 2.10 gives that name to a node as well.
    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, network: nn.Module, options: NetworkOptions) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("pixel_mean", torch.tensor(options.mean).view(-1, 1, 1, 1))
        self.register_buffer("pixel_std", torch.tensor(options.std).view(-1, 1, 1, 1))

    def forward(self, clips: Tensor) -> Tensor:
        return _logits(self.network, (clips - self.pixel_mean) / self.pixel_std)


def _logits(network: nn.Module, clips: Tensor) -> Tensor:
    logits = logits_in(network(clips))
    if logits is None:
        raise UserError(f"{type(network).__name__} returns no logits")
    return logits


def _card(recognizer: Recognizer, model: str, file: Path, *, view: str, side: int) -> dict[str, Any]:
    recipe = recognizer.recipe
    weights = file.suffix == ".safetensors"
    return {
        "format": "ssl-video export 1",
        "file": file.name,
        "input": {
            "name": "clips",
            "shape": ["batch", 3, recipe.clip.frames, side, side],
            "dtype": "float32",
            "range": [0.0, 1.0],
            "view": view,
            "normalisation": {
                "mean": list(recipe.network.mean),
                "std": list(recipe.network.std),
                "by": "the caller" if weights else "the model",
            },
            "clip": asdict(recipe.clip),
            "preparation": f"frames resized as bytes, bilinearly with antialiasing, to a short side of {side} px, and "
            "cut to squares along the long side (ssl_video.augment.spread_crops); pictures of the view as float, "
            f"divided by 255 (ssl_video.views.make_views, flow={recipe.flow!r}, tg_gain={recipe.tg_gain:g}); "
            "probabilities of a video are the mean over clips and crops",
        },
        "output": {"name": "logits", "shape": ["batch", len(recipe.classes)]},
        "classes": list(recipe.classes),
        "network": asdict(recipe.network),
        "model": model,
    }


def _weights(
    network: nn.Module, recognizer: Recognizer, file: Path, card: dict[str, Any], clips: Tensor
) -> dict[str, Any]:
    """Write the state dictionary of the plain network, load it into a new one and compare the outputs."""
    recipe = recognizer.recipe
    state = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    # One entry alone: safetensors stores several in random order, and the file would not be reproducible.
    write_tensors(file, state, {"ssl_video": json.dumps(card)})
    again = build_network(recipe.network, len(recipe.classes))
    again.load_state_dict(safetensors.torch.load_file(file))
    difference = (_logits(again.eval(), clips) - _logits(network, clips)).abs().max().item()
    if not difference <= 1e-5:
        raise UserError(
            f"{file.name} gives other logits than the model (by up to {difference:.2g}); nothing was written"
        )
    return {**card, "checked": {"with": recipe.network.name, "largest_difference": difference}}
