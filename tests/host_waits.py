"""Find what would make the host wait for a GPU, without one.

Tensors on the device "meta" have shapes but no values: whatever reads a value of one fails there. `Waits` finds what
does not fail: blocking copies between the host and the device, and readings of values on the CPU.
"""

from __future__ import annotations

import traceback
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

DEVICE = torch.device("meta")
_ATEN = torch.ops.aten
READING = {
    _ATEN._local_scalar_dense.default, _ATEN.nonzero.default, _ATEN.masked_select.default, _ATEN._unique2.default,
    _ATEN.unique_dim.default, _ATEN.unique_consecutive.default, _ATEN.is_nonzero.default, _ATEN.equal.default,
    _ATEN.repeat_interleave.Tensor, _ATEN.bincount.default, _ATEN.histc.default,
}  # fmt: skip
_INDEXING = {_ATEN.index.Tensor, _ATEN.index_put.default, _ATEN.index_put_.default, _ATEN._index_put_impl_.default}
_METHODS = ("tolist", "numpy", "__array__")


class Waits(TorchDispatchMode):
    """Collects the lines of our packages that would wait.

    Args:
        on_host: Whether to collect what reads a value on the CPU, which here stands for the device, too.

    Attributes:
        found: Innermost lines of our packages, each with the operation that waits.
    """

    def __init__(self, *, on_host: bool = True) -> None:
        super().__init__()
        self.found: set[str] = set()
        self._on_host = on_host
        self._methods: dict[str, Any] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._on_host and (function in READING or (function in _INDEXING and _has_mask(args[1]))):
            self._note(str(function))
        if function in _INDEXING and args[0].device == DEVICE and any(_on(x, "cpu") and x.ndim for x in args[1]):
            self._note("an index on the host")
        out = function(*args, **kwargs)
        if function in {_ATEN._to_copy.default, _ATEN.copy_.default}:
            to, source = (out, args[0]) if function is _ATEN._to_copy.default else (args[0], args[1])
            blocking = not kwargs.get("non_blocking", len(args) > 2 and args[2])
            if blocking and to.device == DEVICE and source.device != DEVICE and source.ndim:
                self._note("a blocking copy to the device")
        return out

    def __enter__(self) -> Waits:
        for name in _METHODS if self._on_host else ():
            self._methods[name] = getattr(Tensor, name)
            setattr(Tensor, name, self._watched(name))
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        for name, method in self._methods.items():
            setattr(Tensor, name, method)
        super().__exit__(*error)

    def _watched(self, name: str) -> Any:
        original = self._methods[name]

        def method(x: Tensor, *args: Any, **kwargs: Any) -> Any:
            self._note(name)
            return original(x, *args, **kwargs)

        return method

    def _note(self, operation: str) -> None:
        own = [frame for frame in traceback.extract_stack() if "/src/" in frame.filename]
        line = f"{own[-1].filename}:{own[-1].lineno} {own[-1].line}" if own else "a test"
        self.found.add(f"{line} ({operation})")


def device_run() -> Any:
    """Return a stand-in for what batches and losses of a training step ask of a `Run` on the device."""
    return SimpleNamespace(
        device=DEVICE, rank=0, world_size=1, seed=lambda *purpose: hash(purpose) % 2**31,
        fabric=SimpleNamespace(autocast=nullcontext),
    )  # fmt: skip


def _has_mask(indices: Any) -> bool:
    return any(x is not None and x.dtype == torch.bool for x in indices)


def _on(x: Any, device: str) -> bool:
    return isinstance(x, Tensor) and x.device.type == device
