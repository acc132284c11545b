"""Read weights of other programs from .safetensors or PyTorch files, without running code that a file contains."""

from __future__ import annotations

import argparse
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from contrastive_core.errors import UserError
from contrastive_core.text import size, some_of
from contrastive_core.training.documents import reading

_RATIO = 20
"""Largest ratio of the uncompressed size of a file to its size on the disk."""
_DEPTH = 20
"""Number of levels of nested containers that are searched for tensors."""
_WRAPPERS = ("module", "_orig_mod")
"""Parts that DistributedDataParallel and torch.compile insert into names."""
_STATE_KEYS = ("state_dict", "model_state", "model")
"""Names under which training programs store the state dictionary in a checkpoint."""
# Containers of settings and numbers that training programs store with their weights; they do not run code.
_HARMLESS: list[Any] = [argparse.Namespace, np.dtype, *{type(np.dtype(kind)) for kind in "?bBhHiIlLqQefd"}]
_HARMLESS.append(np.float64(0).__reduce__()[0])  # builds NumPy scalars; its module differs between versions


def read_state_dict(file: Path) -> dict[str, Tensor]:
    """Read a state dictionary, which may be stored under ``state_dict``, ``model_state`` or ``model``.

    The prefix ``module.`` is removed if all names have it.

    Raises:
        UserError: The file is missing or damaged, contains no state dictionary, or cannot be read without running code.
    """
    content = _read(file)
    for key in _STATE_KEYS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"{file} contains no state dictionary; expected a mapping from names to tensors")
    if all(str(name).startswith("module.") for name in content):
        content = {str(name).removeprefix("module."): tensor for name, tensor in content.items()}
    return _without_nan(file, {str(name): tensor for name, tensor in content.items()})


def read_tensors(file: Path) -> dict[str, Tensor]:
    """Read all tensors of a file, converting floating-point tensors to float32.

    A tensor is named by its path in nested dictionaries and lists, such as ``state_dict.encoder.conv1.weight``, without
    the parts ``module`` and ``_orig_mod`` that DistributedDataParallel and torch.compile insert.

    Raises:
        UserError: The file is missing or damaged, contains no tensors, or cannot be read without running code.
    """
    content = _read(file)
    tensors = {plain_name(name): t.float() if t.is_floating_point() else t for name, t in _flat(content, "")}
    if not tensors:
        raise UserError(f"{file} contains a {type(content).__name__} without tensors; expected a state dictionary")
    return _without_nan(file, tensors)


def _without_nan(file: Path, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    broken = [name for name, tensor in tensors.items() if tensor.is_floating_point() and _has_nan(tensor)]
    if broken:
        raise UserError(
            f"{file} holds values that are not numbers (NaN) in {some_of(broken, 3)}: the training that saved it had "
            "diverged; use an earlier checkpoint"
        )
    return tensors


def _has_nan(tensor: Tensor) -> bool:
    # Infinite values are allowed, because attention masks contain them. Types of up to 8 bits are not checked.
    return tensor.element_size() > 1 and bool(tensor.isnan().any())


def plain_name(name: str) -> str:
    """Remove the parts that DistributedDataParallel and torch.compile insert into a name."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def below_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names start with a prefix, and remove it from their names."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _read(file: Path) -> Any:
    if not file.is_file():
        raise UserError(f"{file} does not exist; expected weights as .safetensors, .pt, .pth or .ckpt")
    if file.suffix == ".safetensors":
        with reading(file, "is damaged or not a safetensors file", "download it again"):
            return safetensors.torch.load_file(file)
    _check_unpacked(file)
    try:
        with torch.serialization.safe_globals(_HARMLESS):
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # the exceptions of the unpickler, the zip reader and the checks have no common class
        reason = str(error).strip().splitlines() or [type(error).__name__]
        refused = next((line.strip() for line in reason if "GLOBAL" in line or "Unsupported" in line), reason[0])
        if not file.stat().st_size:
            refused = "the file is empty"
        elif not re.search("[A-Za-z]", refused):  # such as the byte at which the unpickler failed
            refused = "it is no file of torch.save"
        raise UserError(
            f"{file} cannot be read as weights: {refused[:300]}\nOnly tensors, numbers, text and namespaces of these "
            "are read, because other objects could run code that the file contains. If the file is damaged, download "
            "it again. If you trust it, save only the weights in the program that wrote it: "
            "torch.save(model.state_dict(), 'weights.pt')"
        ) from error


def _check_unpacked(file: Path) -> None:
    """Raise an error for a compressed file that is far larger uncompressed; PyTorch does not compress its files."""
    if not zipfile.is_zipfile(file):
        return
    with reading(file, "is damaged", "download it again"), zipfile.ZipFile(file) as members:
        unpacked = sum(member.file_size for member in members.infolist())
    if unpacked > _RATIO * file.stat().st_size:
        raise UserError(
            f"{file} has {size(file.stat().st_size)} and unpacks to {size(unpacked)}, expected at most {_RATIO} times "
            "its size; download it again"
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
