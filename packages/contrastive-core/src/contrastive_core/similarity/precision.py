"""Control the working precision: full float32 products regardless of global settings, and float64 where it is cheap."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

HALF_DTYPES = (torch.float16, torch.bfloat16)

# Precision settings of matrix products on CUDA and on the CPU.
_MATMULS: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]


def exact_dtype(x: Tensor) -> torch.dtype:
    """Return float64 if the device supports it, else float32; meant for per-row numbers, whose cost is negligible."""
    return torch.float32 if x.device.type == "mps" else torch.float64


def full(x: Tensor) -> Tensor:
    """Convert float16 and bfloat16 to float32; return float32 and float64 unchanged."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Disable autocast, and TF32 or bfloat16 in float32 products (`torch.set_float32_matmul_precision("high")`).

    Because a logit is a similarity divided by the temperature, the error of a TF32 product, 1e-3, would be 1e-2 at
    temperature 0.1.
    """
    with torch.autocast(device.type, enabled=False):
        if all(matmul.fp32_precision in ("none", "ieee") for matmul in _MATMULS):
            yield
        else:
            with _ieee_products():
                yield


@contextmanager
def _ieee_products() -> Iterator[None]:
    before = [matmul.fp32_precision for matmul in _MATMULS]
    # torch raises an error if the older and the newer setting disagree when a product runs. The older one cannot be
    # read if only the newer one has been set; it then has its default, which is the value required here.
    try:
        older = torch.get_float32_matmul_precision()
    except RuntimeError:
        older = None
    try:
        if older is not None:
            torch.set_float32_matmul_precision("highest")
        for matmul in _MATMULS:
            matmul.fp32_precision = "ieee"
        yield
    finally:
        if older is not None:
            torch.set_float32_matmul_precision(older)
        for matmul, precision in zip(_MATMULS, before, strict=True):
            matmul.fp32_precision = precision
