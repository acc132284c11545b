"""Weights saved by PyTorch programs as one flat mapping of names to tensors; no code in a file is ever run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from contrastive_core.errors import UserError


def read_tensors(source: Path) -> dict[str, Tensor]:
    """Every tensor of a ``.safetensors`` file or of what `torch.save` wrote, as float32 where it is floating point.

    What lies in nested dictionaries and lists gets the path to it as its name: ``state_dict.module.conv1.weight``.

    Raises:
        UserError: the file is missing or damaged, holds no tensors, or needs to run code to be read.
    """
    if not source.is_file():
        raise UserError(
            f"{source} is not a file; expected a checkpoint (.pt, .pth, .ckpt, .safetensors, or TensorFlow's)"
        )
    if source.suffix == ".safetensors":
        try:
            content: object = safetensors.torch.load_file(source)
        except safetensors.SafetensorError as error:
            raise UserError(f"{source} is damaged or no safetensors file: {error}. Fetch it again") from error
    else:
        content = _load(source)
    tensors = {name: t.float() if t.is_floating_point() else t for name, t in _flat(content, "")}
    if not tensors:
        raise UserError(f"{source} holds a {type(content).__name__} without tensors; expected a state dict")
    return tensors


def _load(source: Path) -> object:
    try:
        return torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:  # what its unpickler, its zip reader and its checks raise has no common class
        reason = str(error).strip().splitlines() or [type(error).__name__]
        refused = next((line.strip() for line in reason if "GLOBAL" in line or "Unsupported" in line), reason[0])
        raise UserError(
            f"{source} was not read: {refused[:300]}\nOnly tensors, numbers and text are read, because anything more "
            "would run code that the file brings. If it is damaged, fetch it again. If you trust it, save its weights "
            "alone where it was made: torch.save(model.state_dict(), 'weights.pt')"
        ) from error


def _flat(content: object, path: str, depth: int = 0) -> Iterator[tuple[str, Tensor]]:
    if isinstance(content, Tensor):
        yield path, content.detach()
    elif depth < 20 and isinstance(content, Mapping):
        for key, value in content.items():
            yield from _flat(value, f"{path}.{key}" if path else str(key), depth + 1)
    elif depth < 20 and isinstance(content, Sequence) and not isinstance(content, str | bytes):
        for index, value in enumerate(content):
            yield from _flat(value, f"{path}.{index}" if path else str(index), depth + 1)
