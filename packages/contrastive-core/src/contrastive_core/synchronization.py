"""Avoid synchronisation between the host and a device.

The host queues the operations of a GPU ahead of their execution. Reading a value of a tensor (`item`, a condition, a
mask as an index) makes it wait until all of them are done. Functions that run in every training step therefore read
values only if the tensor is on the CPU.
"""

from __future__ import annotations

from torch import Tensor

_FREE = {"cpu"}


def free_to_read(x: Tensor) -> bool:
    """Return whether the host can read values of a tensor without waiting for a device."""
    return x.device.type in _FREE
