"""Read weights of other programs, as .safetensors or as PyTorch files, without running code that a file brings."""

from __future__ import annotations

import argparse
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from contrastive_core.errors import UserError
from contrastive_core.text import size
from contrastive_core.training.documents import reading

_RATIO = 20
"""How many times its size on the disk a file of weights may take in memory."""
_DEPTH = 20
"""Levels of nested containers that are searched for tensors."""
_WRAPPERS = ("module", "_orig_mod")
"""Parts that DistributedDataParallel and torch.compile put into names."""
_STATE_KEYS = ("state_dict", "model_state", "model")
"""Names under which training programs keep the state dictionary in a checkpoint."""
# Containers of settings and numbers that training programs store beside their weights; they run nothing.
_HARMLESS: list[Any] = [argparse.Namespace, np.dtype, *{type(np.dtype(kind)) for kind in "?bBhHiIlLqQefd"}]
_HARMLESS.append(np.float64(0).__reduce__()[0])  # what NumPy builds a scalar with; its module differs between versions


def read_state_dict(file: Path) -> dict[str, Tensor]:
    """Read the state dictionary that a file is, or holds under ``state_dict``, ``model_state`` or ``model``.

    A prefix ``module.`` that all names share is removed.

    Raises:
        UserError: The file is missing or damaged, holds no state dictionary, or needs to run code to be read.
    """
    content = _read(file)
    for key in _STATE_KEYS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"{file}: holds no state dictionary; expected names and tensors")
    if all(str(name).startswith("module.") for name in content):
        content = {str(name).removeprefix("module."): tensor for name, tensor in content.items()}
    return {str(name): tensor for name, tensor in content.items()}


def read_tensors(file: Path) -> dict[str, Tensor]:
    """Read every tensor of a file, as float32 where it is floating point.

    The name of a tensor in nested dictionaries and lists is the path to it, ``state_dict.encoder.conv1.weight``,
    without the parts ``module`` and ``_orig_mod`` that DistributedDataParallel and torch.compile put anywhere in it.

    Raises:
        UserError: The file is missing or damaged, holds no tensors, or needs to run code to be read.
    """
    content = _read(file)
    tensors = {plain_name(name): t.float() if t.is_floating_point() else t for name, t in _flat(content, "")}
    if not tensors:
        raise UserError(f"{file}: holds a {type(content).__name__} without tensors; expected a state dictionary")
    return tensors


def plain_name(name: str) -> str:
    """Remove the parts that wrappers of torch put into a name."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def below_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names begin with a prefix, by the rest of their names."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _read(file: Path) -> Any:
    if not file.is_file():
        raise UserError(f"{file}: no such file; expected weights as .safetensors, .pt, .pth or .ckpt")
    if file.suffix == ".safetensors":
        with reading(file, "is damaged or not a safetensors file", "fetch it again"):
            return safetensors.torch.load_file(file)
    _check_unpacked(file)
    try:
        with torch.serialization.safe_globals(_HARMLESS):
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # the errors of its unpickler, its zip reader and its checks share no class
        reason = str(error).strip().splitlines() or [type(error).__name__]
        refused = next((line.strip() for line in reason if "GLOBAL" in line or "Unsupported" in line), reason[0])
        raise UserError(
            f"{file}: cannot be read as weights: {refused[:300]}\nOnly tensors, numbers, text and namespaces of these "
            "are read, because anything more would run code that the file brings. If it is damaged, fetch it again. If "
            "you trust it, save its weights alone where it was made: torch.save(model.state_dict(), 'weights.pt')"
        ) from error


def _check_unpacked(file: Path) -> None:
    """Refuse a compressed file that unpacks to far more than it takes; PyTorch itself does not compress."""
    if not zipfile.is_zipfile(file):
        return
    with reading(file, "is damaged", "fetch it again"), zipfile.ZipFile(file) as members:
        unpacked = sum(member.file_size for member in members.infolist())
    if unpacked > _RATIO * file.stat().st_size:
        raise UserError(
            f"{file}: takes {size(file.stat().st_size)} and unpacks to {size(unpacked)}, which no weights do; "
            "fetch it again"
        )


def _flat(content: object, path: str, depth: int = 0) -> Iterator[tuple[str, Tensor]]:
    if isinstance(content, Tensor):
        yield path, content.detach()
    elif depth < _DEPTH and isinstance(content, Mapping):
        for key, value in content.items():
            yield from _flat(value, f"{path}.{key}" if path else str(key), depth + 1)
    elif depth < _DEPTH and isinstance(content, Sequence) and not isinstance(content, str | bytes):
        for index, value in enumerate(content):
            yield from _flat(value, f"{path}.{index}" if path else str(index), depth + 1)
