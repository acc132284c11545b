"""What of this package is in use on this machine, for bug reports and for `python -m contrastive_core`."""

from __future__ import annotations

from dataclasses import dataclass

import torch

import contrastive_core
from contrastive_core.native.library import load
from contrastive_core.similarity import tensor_cores
from contrastive_core.similarity.api import active_backend, unavailable


@dataclass(frozen=True)
class Info:
    """What runs; `print` shows it readable."""

    version: str
    """Of contrastive-core."""
    backend: str
    """Implementation of the similarity primitive in use."""
    library: str
    """The compiled library that loaded: its instruction set and file; empty if none did."""
    unavailable: dict[str, str]
    """Implementations that did not load, why, and what to do."""
    torch: str
    """Version of PyTorch."""
    devices: tuple[str, ...]
    """"cpu", and the accelerators PyTorch finds."""
    cuda: str
    """What computes losses on CUDA devices: PyTorch tiles or Triton kernels for tensor cores."""
    threads: int
    """CPU threads PyTorch uses within an operation."""

    def __str__(self) -> str:
        lines = [
            f"contrastive-core {self.version}",
            f"backend   {self.backend}",
            *([f"library   {self.library}"] if self.library else []),
            *(f"          {name}: {reason}" for name, reason in self.unavailable.items()),
            f"torch     {self.torch}",
            f"devices   {', '.join(self.devices)}",
            f"cuda      {self.cuda}",
            f"threads   {self.threads}",
        ]
        return "\n".join(lines)


def info() -> Info:
    """Which backend is in use and why another is not, PyTorch, devices, threads.

    >>> info().backend in ("native", "torch")
    True
    """
    missing = unavailable()
    library = None if missing else load()
    return Info(
        version=contrastive_core.__version__,
        backend=active_backend().name,
        library=f"{library.instructions}, {library.path}" if library else "",
        unavailable=missing,
        torch=torch.__version__,
        devices=_devices(),
        cuda=tensor_cores.state(),
        threads=torch.get_num_threads(),
    )


def _devices() -> tuple[str, ...]:
    cuda = [f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count())]
    return ("cpu", *cuda, *(["mps"] if torch.backends.mps.is_available() else []))
