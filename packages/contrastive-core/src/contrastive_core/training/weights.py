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
_WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Parts that DistributedDataParallel, torch.compile, FSDP and activation checkpointing insert into names."""
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
    the parts such as ``module`` and ``_orig_mod`` that DistributedDataParallel and torch.compile insert.

    Raises:
        UserError: The file is missing or damaged, contains no tensors, contains two different ones that differ in name
            only by these parts, or cannot be read without running code.
    """
    content = _read(file)
    tensors: dict[str, Tensor] = {}
    for name, tensor in _flat(content, ""):
        value = tensor.float() if tensor.is_floating_point() else tensor
        other = tensors.setdefault(plain_name(name), value)
        if other is not value and not torch.equal(other, value):
            raise UserError(
                f"{file} contains {name} and another tensor of the same name without {', '.join(_WRAPPERS[:2])}, "
                "and they differ; save the state dictionary of one of the two networks"
            )
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
    """Remove the parts that wrappers of networks, such as DistributedDataParallel, insert into a name."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def below_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names start with a prefix, and remove it from their names."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _read(file: Path) -> Any:
    if not file.is_file():
        raise UserError(f"{file} does not exist; expected weights as .safetensors, .pt, .pth or .ckpt")
    if file.suffix == ".safetensors":
        with reading(file, "is damaged or not a safetensors file", "download it again"):
            try:
                return safetensors.torch.load_file(file)
            except Exception as error:
                if another := _another_kind(file):
                    raise UserError(f"{file} cannot be read as weights: {another}") from error
                raise
    _check_unpacked(file)
    try:
        with torch.serialization.safe_globals(_HARMLESS):
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # the exceptions of the unpickler, the zip reader and the checks have no common class
        reason = str(error).strip().splitlines() or [type(error).__name__]
        problem = next((line.strip() for line in reason if "GLOBAL" in line or "Unsupported" in line), reason[0])
        if another := _another_kind(file):
            raise UserError(f"{file} cannot be read as weights: {another}") from error
        if re.match("Unsupported operand", problem) or not re.search("[A-Za-z]", problem):  # of a pickle, at some byte
            problem = "it is no file of torch.save"
        raise UserError(
            f"{file} cannot be read as weights: {problem[:300]}\nOnly tensors, numbers, text and namespaces of these "
            "are read, because other objects could run code that the file contains. If the file is damaged, download "
            f"it again. If you trust it, {_SAVE}"
        ) from error


_SAVE = "save only the weights in the program that wrote it: torch.save(model.state_dict(), 'weights.pt')"
_KINDS: list[tuple[bytes, str]] = [
    (b"version https://git-lfs", "it is a pointer of Git LFS, not the file itself; fetch the file with `git lfs pull`"),
    (b"<", "it is a web page or XML, probably an error message in place of the download; download it again"),
    (b"{", "it is JSON; expected the file of weights that it describes"),
    (b"\x89HDF", "it is a file of HDF5, as written by Keras; expected weights of a PyTorch program"),
]
"""First bytes of files that are often given in place of weights, and what to do."""


def _another_kind(file: Path) -> str:
    """Describe a file that holds no weights by its first bytes or its members; empty if they do not tell."""
    with file.open("rb") as stream:
        begins = stream.read(64).lstrip()
    members: list[str] = []
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            members = archive.namelist()
    descriptions = [
        ("the file is empty; download it again", not file.stat().st_size),
        *((description, begins.startswith(start)) for start, description in _KINDS),
        (f"it is a model in ONNX; {_SAVE}", file.suffix.lower() == ".onnx"),
        (
            "it holds arrays of NumPy, as written by JAX programs; expected weights of a PyTorch program",
            any(name.endswith(".npy") for name in members),
        ),
        (f"it is a TorchScript program, which contains code; {_SAVE}", any("/code/" in name for name in members)),
    ]
    return next((description for description, applies in descriptions if applies), "")


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
