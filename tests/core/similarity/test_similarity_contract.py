"""Promises of the primitive apart from its numbers: precision switches, registration, errors, backends by name."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from contrastive_core.similarity import active_backend, row_lse, self_lse, torch_backend, use_backend
from contrastive_core.similarity.api import unavailable

pytestmark = pytest.mark.usefixtures("small_tiles", "backend")


def randn(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_does_not_reach_inside(dtype: torch.dtype) -> None:
    z, k = (randn(20, 16, seed=s, dtype=torch.float32).requires_grad_() for s in (0, 1))
    plain = [self_lse(z, scale=1.0), row_lse(z, k, scale=1.0)]
    expected = torch.autograd.grad(plain[0].sum() + plain[1].sum(), (z, k))
    with torch.autocast("cpu", dtype):
        inside = [self_lse(z, scale=1.0), row_lse(z, k, scale=1.0)]
        # Backwards inside the region too: that is where a plain product would be cast.
        grads = torch.autograd.grad(inside[0].sum() + inside[1].sum(), (z, k))
    for a, b in zip([*inside, *grads], [*plain, *expected], strict=True):
        assert torch.equal(a, b)


def switches() -> tuple[str, str]:
    return torch.backends.cuda.matmul.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision


@pytest.mark.parametrize("way", ["older", "cuda only", "newer"])
def test_reduced_precision_products_are_off_inside_and_back_after(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    seen = []
    forward = torch_backend.symmetric_forward

    def look(*args: Any, **options: Any) -> Tensor:
        # cuBLAS refuses to work when the two switches contradict each other.
        seen.append((switches(), torch.get_float32_matmul_precision(), torch.backends.cuda.matmul.allow_tf32))
        return forward(*args, **options)

    monkeypatch.setattr(torch_backend, "symmetric_forward", look)
    start = switches()
    try:
        if way == "older":
            torch.set_float32_matmul_precision("medium")
        elif way == "cuda only":
            torch.backends.cuda.matmul.allow_tf32 = True
        else:
            torch.backends.cuda.matmul.fp32_precision = "tf32"
        before = switches()
        assert before[0] == "tf32"
        with use_backend("torch"):
            self_lse(randn(4, 3, seed=0), scale=1.0)
        assert seen == [(("ieee", "ieee"), "highest", False)]
        assert switches() == before
        if way == "older":
            assert torch.get_float32_matmul_precision() == "medium"
    finally:
        for matmul in (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul):
            matmul.fp32_precision = "ieee"
        torch.set_float32_matmul_precision("highest")
        for matmul, precision in zip((torch.backends.cuda.matmul, torch.backends.mkldnn.matmul), start, strict=True):
            matmul.fp32_precision = precision


def test_operators_are_registered_as_torch_wants_them(backend: str) -> None:
    """Schema, fake tensors, autograd registration, tracing with dynamic shapes."""
    z, k = randn(9, 4, seed=0).requires_grad_(), randn(6, 4, seed=1).requires_grad_()
    labels, other = torch.tensor([0, 0, 1, 1, 1, 2, 2, 2, 2]), torch.tensor([0, 1, 1, 2, 2, 3])
    ops = getattr(torch.ops, {"torch": "contrastive_core", "native": "contrastive_core_native"}[backend])
    for args in (
        (z, 2.0, None, None, "all", None),
        (z, 2.0, 3, None, "all", None),
        (z, 2.0, None, labels, "same", 9.0),
    ):
        torch.library.opcheck(ops.self_lse.default, args)
    for args in ((z, k, 2.0, None, None, None, "all"), (z, k.detach(), 2.0, -1, labels, other, "other")):
        torch.library.opcheck(ops.row_lse.default, args)


WRONG = {
    "integers": (lambda: self_lse(torch.ones(3, 2, dtype=torch.int64), scale=1.0), TypeError, "z is torch.int64"),
    "vector": (
        lambda: self_lse(torch.ones(3), scale=1.0),
        ValueError,
        r"z has shape \[3\], expected \[rows, features\]",
    ),
    "scale 0": (lambda: self_lse(torch.ones(3, 2), scale=0.0), ValueError, "scale is 0.0, expected a positive"),
    "scale nan": (lambda: self_lse(torch.ones(3, 2), scale=math.nan), ValueError, "scale is nan"),
    "widths": (
        lambda: row_lse(torch.ones(3, 2), torch.ones(3, 4), scale=1.0),
        ValueError,
        "expected the same number of columns",
    ),
    "among alone": (lambda: self_lse(torch.ones(3, 2), scale=1.0, among="same"), ValueError, "'same' without classes"),
    "classes alone": (
        lambda: self_lse(torch.ones(3, 2), scale=1.0, classes=torch.arange(3)),
        ValueError,
        "'all' with classes",
    ),
    "count": (
        lambda: self_lse(torch.ones(3, 2), scale=1.0, classes=torch.arange(2), among="same"),
        ValueError,
        r"expected \[3\]",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arguments_say_what_was_expected(case: str) -> None:
    call, error, message = WRONG[case]
    with pytest.raises(error, match=message):
        call()


def test_backends_by_name(backend: str) -> None:
    assert active_backend().name == backend
    with use_backend("reference"):
        assert active_backend().name == "reference"
        with use_backend("auto"):
            assert active_backend().name == ("torch" if unavailable() else "native")
    assert active_backend().name == backend
    with pytest.raises(ValueError, match="'fast', expected auto or one of native, torch, ref"), use_backend("fast"):
        pass
