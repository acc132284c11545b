"""Distillation loss: formula, low temperatures, gradients and edge cases; recorded values: test_losses_golden.py."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from contrastive_core import DistillationLoss, distillation

Differentiate = Callable[..., tuple[Tensor, ...]]


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def formula(student: Tensor, teacher: Tensor, t: float) -> Tensor:
    p, q = (teacher / t).softmax(1), (student / t).softmax(1)
    return -(p * q.log()).sum(1).mean()


@settings(deadline=None, max_examples=30)
@given(
    n=st.integers(1, 6), c=st.integers(1, 7), t=st.floats(0.05, 20), seed=st.integers(0, 2**31), squared=st.booleans()
)
def test_against_the_formula(n: int, c: int, t: float, seed: int, squared: bool) -> None:
    student, teacher = randn(n, c, seed=seed).requires_grad_(), randn(c, n, seed=seed + 1).T
    loss = distillation(student, teacher, temperature=t, scale_by_temperature=squared)
    expected = formula(student, teacher, t) * (t**2 if squared else 1)
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-12)
    ours, theirs = (torch.autograd.grad(x, student)[0] for x in (loss, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("t", [1e-3, 0.01, 0.1, 1.0, 10.0])
def test_float32_is_within_a_millionth_of_float64(t: float, differentiate: Differentiate) -> None:
    student, teacher = randn(30, 12).float(), randn(30, 12, seed=1).float()
    value, grad = differentiate(lambda s: distillation(s, teacher, temperature=t), student)
    exact, exact_grad = differentiate(lambda s: distillation(s, teacher.double(), temperature=t), student.double())
    assert abs(value.item() / exact.item() - 1) <= 1e-6
    assert (grad.double() - exact_grad).norm() <= 1e-6 * exact_grad.norm()


def test_the_teacher_gets_no_gradient() -> None:
    student, teacher = randn(3, 4).requires_grad_(), randn(3, 4, seed=1).requires_grad_()
    distillation(student, teacher).backward()
    assert student.grad is not None
    assert teacher.grad is None


def test_smallest_value_is_the_teachers_entropy() -> None:
    teacher = randn(5, 4)
    student = (teacher + 3.0).requires_grad_()
    loss = distillation(student, teacher, temperature=2.0)
    torch.testing.assert_close(loss, torch.distributions.Categorical(logits=teacher / 2).entropy().mean())
    (grad,) = torch.autograd.grad(loss, student)
    torch.testing.assert_close(grad, torch.zeros(5, 4).double(), atol=1e-15, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_and_autocast(dtype: torch.dtype, differentiate: Differentiate) -> None:
    student, teacher = (8 * randn(6, 5)).to(dtype), (8 * randn(6, 5, seed=1)).to(dtype)
    exact, exact_grad = differentiate(lambda s: distillation(s, teacher.float(), temperature=0.1), student.float())
    with torch.autocast("cpu", dtype):
        value, grad = differentiate(lambda s: distillation(s, teacher, temperature=0.1), student)
    assert value.dtype == torch.float32
    assert torch.equal(value, exact)
    assert torch.equal(grad, exact_grad.to(dtype))


def test_excluded_classes_contribute_nothing(differentiate: Differentiate) -> None:
    """Logits of -inf in both networks, as for classes that a sample cannot have."""
    student, teacher = randn(4, 6), randn(4, 6, seed=1)
    excluded = torch.tensor([False, True, False, False, True, False])
    found = differentiate(
        lambda z: distillation(z.masked_fill(excluded, -torch.inf), teacher.masked_fill(excluded, -torch.inf)), student
    )
    alone = differentiate(lambda z: distillation(z[:, ~excluded], teacher[:, ~excluded]), student)
    torch.testing.assert_close(found, alone)
    # A class that only the student excludes makes its loss infinite.
    assert distillation(student.masked_fill(excluded, -torch.inf), teacher) == torch.inf


def test_nan_is_passed_on() -> None:
    student = randn(3, 4)
    student[1, 2] = math.nan
    assert distillation(student, randn(3, 4)).isnan()


def test_module_holds_keywords() -> None:
    student, teacher = randn(3, 4), randn(3, 4, seed=1)
    module = DistillationLoss(temperature=0.5, scale_by_temperature=True)
    expected = distillation(student, teacher, temperature=0.5, scale_by_temperature=True)
    assert torch.equal(module(student, teacher), expected)
    assert "temperature=0.5, scale_by_temperature=True" in repr(module)


@pytest.mark.parametrize(
    ("student", "teacher", "options", "error", "message"),
    [
        ((3, 4), (3, 5), {}, ValueError, "expected"),
        (
            (3, 4),
            (2, 4),
            {},
            ValueError,
            r"student_logits is \[3, 4\] and teacher_logits is \[2, 4\], expected both \[N, C\]",
        ),
        ((0, 4), (0, 4), {}, ValueError, "at least one sample and one class"),
        ((4,), (4,), {}, ValueError, r"expected both \[N, C\]"),
        ((3, 4), (3, 4), {"temperature": 0.0}, ValueError, "temperature is 0.0, expected a positive"),
        ((3, 4), (3, 4), {"temperature": "1"}, TypeError, "temperature is a str"),
    ],
)
def test_wrong_inputs_say_what_was_expected(
    student: tuple[int, ...], teacher: tuple[int, ...], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        distillation(torch.ones(student), torch.ones(teacher), **options)


def test_class_numbers_are_no_teacher() -> None:
    with pytest.raises(TypeError, match=r"teacher_logits is torch.int64"):
        distillation(torch.ones(3, 4), torch.ones(3, 4, dtype=torch.int64))
