"""Seeding the generators that a loop may draw from without saying so."""

from __future__ import annotations

import random

import numpy as np
import torch


def seed_global_generators(seed: int, device: torch.device) -> None:
    """Seed the global generators of torch (on the CPU and on `device`), random and numpy.

    What torch.manual_seed does for the devices in use; that also formats a stack trace for each one that is not.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - the global generator is the one a loop may use unawares
