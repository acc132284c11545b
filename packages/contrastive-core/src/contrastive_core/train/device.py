"""The device a person means by its name."""

from __future__ import annotations

import torch

from contrastive_core.errors import UserError


def choose_device(name: str) -> torch.device:
    """The device of that name; ``auto`` takes CUDA, then Apple's MPS, then the CPU.

    Raises:
        UserError: there is no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {name!r} cannot be used here: {error}. Use auto, cpu, cuda or mps") from error
    return device
