"""Directions and pairs in the compiled library: values and gradients against the PyTorch path and the formula."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from contrastive_core.losses._inputs import paired_similarity, unit_rows
from contrastive_core.native import library
from contrastive_core.similarity import use_backend

pytestmark = pytest.mark.usefixtures("native")
WIDTHS = (1, 2, 15, 16, 17, 40, 129)
SIZES = [((5, d), dtype) for d in WIDTHS for dtype in (torch.float32, torch.float64)]
SIZES += [((2, 3, 4, 7), torch.float32), ((4, 9), torch.float16), ((4, 9), torch.bfloat16), ((0, 4), torch.float32)]


@pytest.fixture(params=["AVX-512", "AVX2"], autouse=True)
def _instructions(request: pytest.FixtureRequest, native: None) -> Iterator[None]:
    try:
        library.set_up(instructions=request.param)
    except library.NotLoadedError as error:
        pytest.skip(str(error))
    yield
    library.set_up()


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def differentiated(backend: str, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    x = x.detach().requires_grad_()
    with use_backend(backend):
        z = unit_rows(x, dtype)
    return z.detach(), torch.autograd.grad(z, x, randn(*x.shape, seed=1).to(dtype))[0]


@pytest.mark.parametrize(("shape", "dtype"), SIZES, ids=str)
def test_unit_rows(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = randn(*shape).to(dtype)
    for work in (torch.float32, torch.float64):
        z, grad = differentiated("native", x, work)
        assert (z.dtype, grad.dtype) == (work, dtype)
        exact = x.double().requires_grad_()
        formula = exact / exact.norm(dim=-1, keepdim=True)
        (exact_grad,) = torch.autograd.grad(formula, exact, randn(*shape, seed=1).to(work).double())
        torch.testing.assert_close(z.double(), formula.detach(), rtol=0, atol={4: 6e-8, 8: 4e-16}[work.itemsize])
        # Of the gradient's rounding, most is that of the direction it is projected with.
        limit = max(torch.finfo(work).eps, torch.finfo(dtype).eps)
        torch.testing.assert_close(grad.double(), exact_grad, rtol=limit, atol=3 * limit * (float(exact.numel() > 0)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_unit_rows_that_are_special(dtype: torch.dtype) -> None:
    """Zeros, squares beyond the range of the type, subnormal numbers, NaN and infinity."""
    finfo = torch.finfo(dtype)
    x = randn(8, 20).to(dtype)
    x[0], x[1], x[2] = 0, x[1] * (finfo.max / 100), x[2] * finfo.tiny * 10
    x[3] = finfo.tiny / 20
    x[4, 3], x[5, 2], x[6] = math.nan, math.inf, 0
    x[6, 1] = -finfo.max
    ours, theirs = (differentiated(backend, x, dtype) for backend in ("native", "torch"))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a[[0, 3]], torch.zeros_like(a[[0, 3]]), rtol=0, atol=0)
        torch.testing.assert_close(a, b, rtol=20 * finfo.eps, atol=finfo.eps, equal_nan=True)
    torch.testing.assert_close(ours[0][[1, 2, 6]].norm(dim=1), torch.ones(3, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("width", WIDTHS)
def test_paired_similarity(width: int, dtype: torch.dtype) -> None:
    a, b = (unit_rows(randn(6, width, seed=seed), torch.float64).to(dtype) for seed in (0, 1))
    b[0] = a[0]  # the gradient is exactly 0 there: all of it is radial
    a.requires_grad_(), b.requires_grad_()
    weight = randn(6, seed=2)
    found = []
    for backend in ("native", "torch"):
        with use_backend(backend):
            value = paired_similarity(a, b)
        found.append((value.detach(), *torch.autograd.grad(value, (a, b), weight)))
    assert found[0][0].dtype == torch.float64
    torch.testing.assert_close(found[0][0], (a.double() * b.double()).sum(1).detach(), rtol=0, atol=1e-15)
    assert (found[0][1][0] == 0).all()
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=4 * torch.finfo(dtype).eps, atol=torch.finfo(dtype).eps)


def test_strides_and_expanded_gradients() -> None:
    x = randn(8, 6).float()
    for strided in (x.T, x[::2, ::3], x[:1].expand(5, -1)):
        leaf = strided.detach().requires_grad_()
        with use_backend("native"):
            z = unit_rows(leaf, torch.float32)
            (grad,) = torch.autograd.grad(z.sum(), leaf)
        plain = strided.contiguous().requires_grad_()
        with use_backend("torch"):
            (expected,) = torch.autograd.grad(unit_rows(plain, torch.float32).sum(), plain)
        torch.testing.assert_close(grad, expected, rtol=1e-6, atol=1e-6)


def test_nothing_depends_on_threads_or_instructions() -> None:
    x = randn(3000, 130).float()
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(differentiated("native", x, torch.float32))
            library.set_up(instructions="AVX2")
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_operators_are_registered_as_torch_wants_them() -> None:
    ops, x, length = torch.ops.contrastive_core_native, randn(5, 4).float(), torch.ones(5, dtype=torch.float64)
    torch.library.opcheck(ops.unit_rows.default, (x, True))
    torch.library.opcheck(ops.unit_rows_backward.default, (x, x, length, False))
    torch.library.opcheck(ops.pair_similarity.default, (x, x))
    torch.library.opcheck(ops.pair_similarity_backward.default, (length, x, x))
