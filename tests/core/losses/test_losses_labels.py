"""Losses with labels: anchors without a positive, one class only, any integer type."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from contrastive_core import (
    SuNCEtLoss,
    SupConLoss,
    suncet,
    supcon,
)
from contrastive_core.losses import count_skipped_anchors
from tests.core.losses.loss_cases import (
    Differentiate,
    Formulas,
    randn,
)

pytestmark = pytest.mark.usefixtures("backend")


@pytest.mark.parametrize(("loss", "module"), [(suncet, SuNCEtLoss), (supcon, SupConLoss)])
def test_anchors_without_a_positive_are_left_out_and_counted(
    loss: Callable[..., Tensor], module: type[SuNCEtLoss | SupConLoss], formulas: Formulas, differentiate: Differentiate
) -> None:
    z, labels = randn(6, 4), torch.tensor([3, 1, 3, 8, 3, -2])
    value, grad = differentiate(lambda z: loss(z, labels), z)
    expected, expected_grad = differentiate(lambda z: getattr(formulas, loss.__name__)(z, labels, 0.1), z)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(grad, expected_grad)
    # They are still candidates of the others.
    assert (grad[[1, 3, 5]] != 0).all()
    assert count_skipped_anchors(labels) == 3
    held = module()
    assert held.skipped_anchors is None
    torch.testing.assert_close(held(z, labels), value)
    assert held.skipped_anchors == 3
    assert held(z, torch.zeros(6, dtype=torch.int64)).isfinite()
    assert held.skipped_anchors == 0
    assert held.state_dict() == {}


@pytest.mark.parametrize("loss", [suncet, supcon])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_all_anchors_left_out_is_zero_with_zero_gradient(
    loss: Callable[..., Tensor], dtype: torch.dtype, differentiate: Differentiate
) -> None:
    z, labels = randn(5, 4).to(dtype), torch.tensor([4, 2, 0, 1, 3])
    value, grad = differentiate(lambda z: loss(z, labels), z)
    assert value == 0
    assert (grad == 0).all()
    assert count_skipped_anchors(labels) == 5


def test_one_class_only() -> None:
    """Every candidate is a positive: nothing to tell apart, log of their number for supcon."""
    z, labels = torch.ones(5, 3).requires_grad_(), torch.full((5,), 2)
    assert suncet(z, labels) == 0
    assert abs(supcon(z, labels).item() / math.log(4) - 1) < 1e-6
    suncet(z, labels).backward()
    assert (z.grad == 0).all()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_labels_of_any_integer_type_order_and_layout(dtype: torch.dtype) -> None:
    z, labels = randn(9, 4), torch.tensor([5, 0, 5, 7, 0, 1, 7, 7, 1])
    order = torch.tensor([4, 0, 8, 2, 6, 1, 7, 3, 5])
    for loss in (suncet, supcon):
        expected = loss(z, labels)
        torch.testing.assert_close(loss(z, labels.to(dtype)), expected)
        torch.testing.assert_close(loss(z[order], labels.to(dtype)[order]), expected)
        torch.testing.assert_close(loss(z, torch.stack([labels, labels], 1).flatten()[::2].to(dtype)), expected)
