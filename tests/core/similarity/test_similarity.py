"""Every backend against the full matrix: values, gradients, every option, every kind of input."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from contrastive_core.similarity import active_backend, row_lse, self_lse, torch_backend, use_backend

pytestmark = pytest.mark.usefixtures("small_tiles", "backend")
many = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
sizes, widths, seeds = st.integers(1, 24), st.integers(1, 9), st.integers(0, 2**31)


def randn(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def stride(x: Tensor, layout: str) -> Tensor:
    """Return the same numbers with another memory layout: transposed, with gaps, or with stride zero (equal rows)."""
    if layout == "transposed":
        return x.T.contiguous().T
    if layout == "gaps":
        return torch.stack([x, x], -1).flatten(1)[:, ::2]
    if layout == "expanded":
        return x[:1].expand(len(x), -1)
    return x


def both(f: Callable[..., Tensor], *inputs: Tensor, seed: int, **options: Any) -> list[tuple[Tensor, ...]]:
    """Return finite values, where they are finite, and gradients of a random combination: backend, then full matrix."""
    results = []
    for name in (active_backend().name, "reference"):
        with use_backend(name):
            leaves = [x.detach().requires_grad_() for x in inputs]
            lse = f(*leaves, **options)
            finite = lse.isfinite()
            assert (finite | (lse == -math.inf)).all()
            value = torch.where(finite, lse * randn(len(lse), seed=seed), 0.0).sum()
            results.append((lse.detach(), *torch.autograd.grad(value, leaves)))
    return results


def assert_equal(results: list[tuple[Tensor, ...]], rtol: float = 1e-9) -> None:
    for ours, theirs in zip(*results, strict=True):
        size = theirs[theirs.isfinite()].abs().max().item() if theirs.isfinite().any() else 0.0
        torch.testing.assert_close(ours, theirs, rtol=rtol, atol=rtol * (size + 1e-3))


layouts = st.sampled_from(["contiguous", "transposed", "gaps", "expanded"])
# 0.1 and 3 stay below the limit of the shiftless sums in float64 for these vectors, 2000 does not.
scales = st.sampled_from([0.1, 3.0, 2000.0])


@many
@given(
    n=sizes,
    d=widths,
    seed=seeds,
    scale=scales,
    layout=layouts,
    option=st.sampled_from(["all", "skip", "same", "other"]),
)
def test_self(n: int, d: int, seed: int, scale: float, layout: str, option: str) -> None:
    z = stride(randn(n, d, seed=seed), layout)
    options: dict[str, Any] = {}
    if option == "skip":
        options["skip"] = seed % n + 1
    elif option != "all":
        labels = torch.randint(0, seed % n + 1, (n,), generator=torch.Generator().manual_seed(seed))
        options = {"classes": labels.sort().values, "among": option}
    assert_equal(both(self_lse, z, seed=seed, scale=scale, **options))


@many
@given(
    nq=sizes,
    nk=sizes,
    d=widths,
    seed=seeds,
    scale=scales,
    layout=layouts,
    option=st.sampled_from(["all", "offset", "same", "other"]),
)
def test_rows(nq: int, nk: int, d: int, seed: int, scale: float, layout: str, option: str) -> None:
    q, k = stride(randn(nq, d, seed=seed), layout), stride(randn(nk, d, seed=seed + 1), layout)
    options: dict[str, Any] = {}
    if option == "offset":
        options["self_offset"] = seed % (nq + nk + 1) - nq
    elif option != "all":
        labels = torch.randint(0, seed % nk + 1, (nq + nk,), generator=torch.Generator().manual_seed(seed))
        options = {"classes": (labels[:nq].sort().values, labels[nq:].sort().values), "among": option}
    assert_equal(both(row_lse, q, k, seed=seed, scale=scale, **options))


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 2e-6), (torch.float16, 2e-6), (torch.bfloat16, 2e-6)])
@pytest.mark.parametrize("scale", [2.0, 200.0])
def test_types_below_double(dtype: torch.dtype, rtol: float, scale: float) -> None:
    """Half types have float32 accuracy; the gradient is exact up to rounding to its type."""
    x = torch.nn.functional.normalize(randn(40, 16, seed=3)).to(dtype)
    # Rounding of the products is multiplied by the scale.
    rtol *= max(1.0, scale / 10)
    exact = both(self_lse, x.double(), seed=1, scale=scale)[1]
    z = x.clone().requires_grad_()
    lse = self_lse(z, scale=scale)
    assert lse.dtype == torch.float64
    (grad,) = torch.autograd.grad((lse * randn(40, seed=1)).sum(), z)
    assert grad.dtype == dtype
    torch.testing.assert_close(lse, exact[0], rtol=rtol, atol=rtol)
    size = exact[1].abs().max().item()
    step = {torch.float32: 0.0, torch.float16: 2**-11, torch.bfloat16: 2**-8}[dtype]
    torch.testing.assert_close(grad.double(), exact[1], rtol=step, atol=4 * rtol * size)


def test_both_ways_to_sum_agree_and_are_both_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    shiftless = torch_backend.symmetric_forward
    monkeypatch.setattr(torch_backend, "symmetric_forward", lambda *a, **k: taken.append(1) or shiftless(*a, **k))
    with use_backend("torch"):
        check_both_ways(taken)


def check_both_ways(taken: list[int]) -> None:
    for dtype, limit in ((torch.float32, 40.0), (torch.float64, 300.0)):
        z = torch.nn.functional.normalize(randn(30, 5, seed=0)).to(dtype)
        length = z.norm(dim=1).max().item()
        for factor, shift_needed in ((0.999, False), (1.001, True)):
            taken.clear()
            results = both(self_lse, z, seed=2, scale=factor * limit / length**2)
            assert bool(taken) != shift_needed
            assert_equal(results, rtol=1e-4 if dtype == torch.float32 else 1e-11)


@pytest.mark.parametrize("scale", [30.0, 1000.0])
def test_antipodal_outlier_and_duplicates_in_float32(scale: float) -> None:
    """All similarities of some rows underflow beside the largest one of the matrix."""
    z = torch.nn.functional.normalize(randn(20, 8, seed=5)) * 0.01 + torch.eye(8, dtype=torch.float64)[0]
    z[3], z[7], z[8] = -z[3], z[6], z[6]
    z = torch.nn.functional.normalize(z).float()
    ours, _ = both(self_lse, z, seed=4, scale=scale)
    _, exact = both(self_lse, z.double(), seed=4, scale=scale)
    torch.testing.assert_close(ours[0].double(), exact[0], rtol=1e-6, atol=1e-6 * scale)
    assert (ours[1] - exact[1]).norm() <= 2e-7 * scale * exact[1].norm()


def test_rounding_of_a_large_sum_does_not_show_in_the_gradient() -> None:
    """exp(S - lse) at S = 700 in float32: the row's factor corrects the rounding of lse, 3e-5."""
    k = torch.tensor([[0.6, -0.8, 0.0]]).repeat(3, 1)
    q = k[:1].clone().requires_grad_()
    row_lse(q, k, scale=700.0).sum().backward()
    torch.testing.assert_close(q.grad, 700 * k[:1], rtol=5e-7, atol=0)


def test_bound_given_by_the_caller_is_used() -> None:
    z = torch.nn.functional.normalize(randn(9, 4, seed=1))
    torch.testing.assert_close(self_lse(z, scale=9.0, max_norm=1.0), self_lse(z, scale=9.0))


@pytest.mark.parametrize("needs", [(True, False), (False, True)])
def test_only_the_gradient_that_is_needed(needs: tuple[bool, bool]) -> None:
    q, k = randn(9, 4, seed=0), randn(11, 4, seed=1)
    expected = both(row_lse, q, k, seed=2, scale=1.0)[1][1:]
    q.requires_grad_(needs[0])
    k.requires_grad_(needs[1])
    row_lse(q, k, scale=1.0).mul(randn(9, seed=2)).sum().backward()
    for x, needed, grad in zip((q, k), needs, expected, strict=True):
        assert (x.grad is not None) == needed
        if needed:
            torch.testing.assert_close(x.grad, grad)


def test_no_gradient_wanted() -> None:
    assert not self_lse(randn(4, 3, seed=0), scale=1.0).requires_grad
    with torch.no_grad():
        assert not row_lse(randn(4, 3, seed=0).requires_grad_(), randn(4, 3, seed=1), scale=1.0).requires_grad


@pytest.mark.parametrize("scale", [1.0, 1e6])
def test_nan_and_infinity_are_not_hidden(scale: float) -> None:
    for bad in (math.nan, math.inf):
        z = randn(10, 3, seed=0)
        z[4, 1] = bad
        assert self_lse(z, scale=scale)[4].isnan()
        assert not row_lse(z, z, scale=scale)[4].isfinite()
    z[4, 1] = math.nan
    assert self_lse(z, scale=scale).isnan().all()
    assert row_lse(z, z, scale=scale).isnan().all()


def test_rows_without_candidates() -> None:
    one = randn(1, 3, seed=0).requires_grad_()
    lse = self_lse(one, scale=1.0)
    assert lse.tolist() == [-math.inf]
    (grad,) = torch.autograd.grad(lse.masked_fill(lse == -math.inf, 0.0).sum(), one)
    assert grad.tolist() == [[0.0, 0.0, 0.0]]
    for q, k, n in ((0, 5, 0), (5, 0, 5), (0, 0, 0)):
        q_, k_ = randn(q, 3, seed=1).requires_grad_(), randn(k, 3, seed=2).requires_grad_()
        lse = row_lse(q_, k_, scale=1.0)
        assert lse.shape == (n,)
        assert (lse == -math.inf).all()
        lse.masked_fill(lse == -math.inf, 0.0).sum().backward()
    assert self_lse(randn(0, 3, seed=0), scale=1.0).shape == (0,)


def test_gradcheck() -> None:
    z = torch.nn.functional.normalize(randn(9, 3, seed=0)).requires_grad_()
    k = randn(8, 3, seed=1).requires_grad_()
    labels = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 2])
    assert torch.autograd.gradcheck(lambda z: self_lse(z, scale=2.0), z)
    assert torch.autograd.gradcheck(lambda z: self_lse(z, scale=400.0, skip=3), z, atol=1e-4)
    assert torch.autograd.gradcheck(lambda z: self_lse(z, scale=2.0, classes=labels, among="same"), z)
    assert torch.autograd.gradcheck(lambda z, k: row_lse(z, k, scale=2.0, self_offset=-1), (z, k))


def test_same_bits_every_time() -> None:
    z, k = randn(40, 8, seed=0, dtype=torch.float32), randn(33, 8, seed=1, dtype=torch.float32)
    for f, inputs in ((self_lse, (z,)), (row_lse, (z, k))):
        first, second = (both(f, *inputs, seed=2, scale=3.0)[0] for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("form", ["self", "row"])
def test_entries_below_the_precision_are_left_out(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sorted clusters at a low temperature: most tiles of the backward pass hold nothing that counts."""
    monkeypatch.setattr(torch_backend, "_BLOCK", {"cpu": 16})
    centres = torch.nn.functional.normalize(randn(10, 40, seed=0), dim=1).repeat_interleave(16, 0)
    z = torch.nn.functional.normalize(centres + 0.03 * randn(160, 40, seed=1), dim=1)
    kept: list[int] = []
    rows = torch_backend._Sieve.rows

    def count(sieve: torch_backend._Sieve, weights: Tensor) -> Tensor | None:
        found = rows(sieve, weights)
        kept.append(len(weights) if found is None else len(found))
        return found

    def gradient(backend: str) -> Tensor:
        x = z.clone().requires_grad_()
        with use_backend(backend):
            lse = self_lse(x, scale=100.0, max_norm=1.0) if form == "self" else row_lse(x, x.flip(0), scale=100.0)
        return torch.autograd.grad((lse * randn(160, seed=2)).sum(), x)[0]

    monkeypatch.setattr(torch_backend._Sieve, "rows", count)
    exact, ours = gradient("reference"), gradient("torch")
    assert (ours - exact).norm() <= 1e-12 * exact.norm()
    assert sum(kept) < 0.5 * 16 * len(kept)
    monkeypatch.setattr(torch_backend, "_least_entry", lambda *_: None)
    assert (ours - gradient("torch")).norm() <= 1e-16 * exact.norm()
