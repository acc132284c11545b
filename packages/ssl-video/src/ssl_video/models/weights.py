"""Read weights of other programs without running code from the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from contrastive_core.errors import UserError


def read_weights(file: Path) -> dict[str, Tensor]:
    """A state dictionary from .safetensors, or from a PyTorch file that holds tensors and nothing else.

    A dictionary under ``state_dict``, ``model_state`` or ``model`` is taken out, and ``module.`` in front of all names
    left out.

    Raises:
        UserError: no such file, a damaged one, or one that holds more than tensors.
    """
    if not file.is_file():
        raise UserError(f"{file}: no such file; expected weights as .safetensors or .pth")
    try:
        if file.suffix == ".safetensors":
            import safetensors.torch  # noqa: PLC0415

            content: Any = safetensors.torch.load_file(file)
        else:
            content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # of either library's own kinds, whatever is wrong with the bytes
        raise _unreadable(file, error) from error
    for key in ("state_dict", "model_state", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"{file}: holds no state dictionary; expected names and tensors")
    if all(str(name).startswith("module.") for name in content):
        content = {str(name).removeprefix("module."): tensor for name, tensor in content.items()}
    return {str(name): tensor for name, tensor in content.items()}


def _unreadable(file: Path, error: Exception) -> UserError:
    return UserError(
        f"{file}: cannot be read as weights ({type(error).__name__}: {str(error).splitlines()[0][:200]}); expected "
        ".safetensors, or a PyTorch file of tensors alone. Files that would run code are refused"
    )
