"""Precision of the losses: rows of any magnitude and type, hard batches, losses near 0."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from torch import Tensor

from contrastive_core import (
    info_nce,
    nt_xent,
)
from tests.core.losses.loss_cases import (
    NAMES,
    Differentiate,
    Formulas,
    cases,
    randn,
    relative,
    some_labels,
)

pytestmark = pytest.mark.usefixtures("backend")


def hard_batch(kind: str, n: int, d: int) -> Tensor:
    """Return two views of n samples, with kinds of rows that have hurt float32."""
    a = randn(n, d, seed=1)
    b = {"independent": randn(n, d, seed=2), "close": a + 0.05 * randn(n, d, seed=2)}.get(
        kind, a + 0.5 * randn(n, d, seed=2)
    )
    if kind == "antipodal outliers":
        a[1], b[1], b[2] = -a[0], -b[0], -a[2]
    elif kind == "duplicates":
        a[:4], b[2:5] = a[0].clone(), a[0].clone()
    elif kind == "zero rows":
        a[3], b[3], b[5] = 0, 0, 0
    elif kind == "common direction":
        a, b = a + 1, b + 1
    return torch.cat([a, b])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("t", [0.001, 0.01, 0.07, 0.1, 0.5, 10.0])
def test_float32_is_within_a_millionth_of_float64(
    name: str, t: float, formulas: Formulas, differentiate: Differentiate
) -> None:
    for kind in ("independent", "close", "antipodal outliers", "duplicates", "zero rows", "common direction"):
        for n, d in ((8, 16), (150, 64)):
            z = hard_batch(kind, n, d).float()
            ours, formula = cases(n, some_labels(2 * n, n // 3))[name]
            value, grad = differentiate(functools.partial(ours, t=t), z)
            assert value.dtype == grad.dtype == torch.float32
            exact, exact_grad = differentiate(functools.partial(formula(formulas), t=t), z.double())
            # The formula itself cancels: log-sum-exp less the positive, numbers of size 1 / t.
            lost = 1e-15 / t
            assert abs(value.item() - exact.item()) <= 1e-6 * exact.item() + lost, (kind, n)
            assert (grad.double() - exact_grad).norm() <= 1e-6 * exact_grad.norm() + lost / z.norm(), (kind, n)


@pytest.mark.parametrize("name", ["nt_xent", "suncet", "info_nce"])
def test_a_loss_close_to_zero_keeps_its_digits(name: str, differentiate: Differentiate) -> None:
    """Well separated samples: the positive makes up all but 4e-4 of the sum."""
    z = (torch.cat([torch.eye(4), -torch.eye(4)], 1).repeat(2, 1) + 0.1 * randn(8, 8)).float()
    ours, _ = cases(4, torch.arange(4).repeat(2))[name]
    value, grad = differentiate(lambda z: ours(z, 0.1), z)
    exact, exact_grad = differentiate(lambda z: ours(z, 0.1), z.double())
    assert 0 < exact < 1e-3
    assert abs(value.item() / exact.item() - 1) < 3e-6
    assert relative(grad, exact_grad) < 3e-6


@pytest.mark.parametrize("factor", [1e30, 1e-30])
@pytest.mark.parametrize("name", NAMES)
def test_scale_of_the_rows_does_not_matter(name: str, factor: float, differentiate: Differentiate) -> None:
    ours, _ = cases(6, some_labels(12, 4))[name]
    for x in (randn(12, 5), randn(12, 5).float()):
        value, grad = differentiate(lambda z: ours(z, 0.2), x)
        scaled, scaled_grad = differentiate(lambda z: ours(z, 0.2), x * factor)
        torch.testing.assert_close(scaled, value, rtol=3e-7, atol=0)
        torch.testing.assert_close(scaled_grad * factor, grad, rtol=1e-5, atol=1e-7)
        uneven = x * torch.tensor([factor, 1.0, 3.0] * 4, dtype=x.dtype)[:, None]
        torch.testing.assert_close(ours(uneven, 0.2), value, rtol=3e-7, atol=0)
    huge = randn(12, 5) * 1e200
    torch.testing.assert_close(ours(huge, 0.2), ours(huge / 1e200, 0.2))


@pytest.mark.parametrize("name", NAMES)
def test_zero_rows_have_no_gradient_and_nan_is_passed_on(name: str, differentiate: Differentiate) -> None:
    ours, _ = cases(6, some_labels(12, 3))[name]
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        z = randn(12, 5).to(dtype)
        z[[1, 2, 8]] = 0
        value, grad = differentiate(lambda z: ours(z, 0.1), z)
        assert value.isfinite()
        assert grad.isfinite().all()
        assert (grad[[1, 2, 8]] == 0).all()
        assert (grad != 0).any()
        value, grad = differentiate(lambda z: ours(z, 0.1), torch.zeros(12, 5, dtype=dtype))
        assert value.isfinite()
        assert (grad == 0).all()
        for bad in (math.nan, math.inf):
            z[4, 0] = bad
            assert ours(z, 0.1).isnan()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_half_types_and_autocast(name: str, dtype: torch.dtype, differentiate: Differentiate) -> None:
    """As exact as the same numbers in float32; autocast changes no bit, wherever the backward pass runs."""
    ours, _ = cases(10, some_labels(20, 4))[name]
    z = randn(20, 8).to(dtype)
    value, grad = differentiate(lambda z: ours(z, 0.1), z)
    exact, exact_grad = differentiate(lambda z: ours(z, 0.1), z.float())
    assert (value.dtype, grad.dtype) == (torch.float32, dtype)
    assert torch.equal(value, exact)
    assert torch.equal(grad, exact_grad.to(dtype))
    with torch.autocast("cpu", dtype):
        inside = differentiate(lambda z: ours(z, 0.1), z.float())
    assert torch.equal(inside[0], exact)
    assert torch.equal(inside[1], exact_grad)


def test_types_are_promoted() -> None:
    a, b = randn(4, 3), randn(4, 3, seed=1)
    assert nt_xent(a.half(), b).dtype == torch.float64
    assert nt_xent(a.half(), b.bfloat16()).dtype == torch.float32
    assert info_nce(a.float(), b.float(), a).dtype == torch.float64
    assert nt_xent(a.float(), b.float(), temperature=0.01).dtype == torch.float32
