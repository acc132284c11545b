"""Report the backend, versions and devices in use, for bug reports and `python -m contrastive_core`."""

from __future__ import annotations

from dataclasses import dataclass

import torch

import contrastive_core
from contrastive_core.native.library import load
from contrastive_core.similarity import tensor_cores
from contrastive_core.similarity.api import active_backend, unavailable


@dataclass(frozen=True)
class Info:
    """Backend, versions and devices in use; `print` shows one of them per line."""

    version: str
    """Version of contrastive-core."""
    backend: str
    """Backend of the similarity primitive."""
    library: str
    """Instruction set and file of the compiled library; empty if none is loaded."""
    unavailable: dict[str, str]
    """Backends that could not be loaded, each with the reason and the remedy."""
    torch: str
    """Version of PyTorch."""
    devices: tuple[str, ...]
    """"cpu" and the accelerators that PyTorch finds."""
    cuda: str
    """Implementation on CUDA devices: PyTorch tiles, or Triton kernels for tensor cores."""
    threads: int
    """Number of CPU threads that PyTorch uses within an operation."""

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
    """Return the backend in use, the reason why others are unavailable, and the versions, devices and threads.

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
