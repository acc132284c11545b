"""Losses with labels: anchors without a positive, one class only, any integer type."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from contrastive_core import (
    PAWSLoss,
    SuNCEtLoss,
    SupConLoss,
    paws,
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
    z, labels = randn(6, 4), torch.tensor([3, 1, 3, 8, 3, 2])
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
    """All candidates are positives, so supcon is the log of their number."""
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


MARKED = torch.tensor([0, -1, 2, 0, -1, -1, 2, 0, 5, -1])  # unlabelled ones, and one alone in its class
LABELLED = MARKED != -1


def supcon_formula(z: Tensor, labels: Tensor, t: float) -> Tensor:
    """Unlabelled rows stay in the denominator: Khosla's A(i) contains all other samples."""
    z = torch.nn.functional.normalize(z, dim=1)
    s = (z @ z.T / t).fill_diagonal_(-torch.inf)
    positive = (labels[:, None] == labels) & (labels >= 0) & ~torch.eye(len(z), dtype=torch.bool)
    live = positive.any(1)
    mean = torch.where(positive, s, 0.0).sum(1)[live] / positive.sum(1)[live]
    return (s[live].logsumexp(1) - mean).mean()


@pytest.mark.parametrize("mark", [-1, -100, 255, 1])
@pytest.mark.parametrize("t", [0.02, 0.3])
@pytest.mark.usefixtures("small_tiles")
def test_unlabelled_samples(mark: int, t: float, formulas: Formulas, differentiate: Differentiate) -> None:
    z, labels = randn(10, 4), torch.where(LABELLED, MARKED, mark)
    options = {"temperature": t, "ignore_index": mark}
    anchors = torch.where(LABELLED, MARKED, -1)
    found = differentiate(lambda z: supcon(z, labels, **options), z)
    torch.testing.assert_close(found, differentiate(lambda z: supcon_formula(z, anchors, t), z))
    assert (found[1][~LABELLED] != 0).all()  # candidates

    labels_alone = MARKED[LABELLED]
    for smoothing, formula in (
        (0.0, lambda z: formulas.suncet(z, labels_alone, t)),
        (0.2, lambda z: formulas.smoothed_suncet(z, labels_alone, t, 0.2)),
    ):
        loss = functools.partial(suncet, labels=labels, label_smoothing=smoothing, **options)
        value, grad = differentiate(loss, z)
        alone = differentiate(formula, z[LABELLED])
        torch.testing.assert_close((value, grad[LABELLED]), alone)
        assert (grad[~LABELLED] == 0).all()  # nor candidates

    assert count_skipped_anchors(labels, ignore_index=mark) == 1
    for module in (SuNCEtLoss(**options), SupConLoss(**options)):
        module(z, labels)
        assert module.skipped_anchors == 1
        assert f"ignore_index={mark}" in repr(module)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.usefixtures("small_tiles")
def test_nan_in_unlabelled_rows_matters_only_to_candidates(
    bad: float, dtype: torch.dtype, differentiate: Differentiate
) -> None:
    z, a, b = randn(10, 4).to(dtype), randn(3, 4, seed=1).to(dtype), randn(3, 4, seed=2).to(dtype)
    broken = z.masked_fill(~LABELLED[:, None], bad)
    excluding: list[Callable[..., Tensor]] = [
        suncet,
        functools.partial(suncet, label_smoothing=0.2),
        functools.partial(suncet, temperature=0.02),
        lambda z, y, ignore_index=None: sum(paws(a, b, z, y, ignore_index=ignore_index)),
    ]
    for loss in excluding:
        value, grad = differentiate(lambda z: loss(z, MARKED, ignore_index=-1), broken)  # noqa: B023
        alone, grad_alone = differentiate(lambda z: loss(z, MARKED[LABELLED]), z[LABELLED])  # noqa: B023
        torch.testing.assert_close(value, alone)
        torch.testing.assert_close(grad[LABELLED], grad_alone)
        assert (grad[~LABELLED] == 0).all()
        labelled_is_broken = z.index_fill(0, torch.tensor([3]), bad)
        assert loss(labelled_is_broken, MARKED, ignore_index=-1).isnan()
    assert supcon(broken, MARKED, ignore_index=-1).isnan()


def test_unlabelled_supports_do_not_vote(differentiate: Differentiate) -> None:
    a, b, supports = randn(3, 4), randn(3, 4, seed=1), randn(10, 4, seed=2)
    found = differentiate(lambda s: sum(paws(a, b, s, MARKED, ignore_index=-1)), supports)
    alone = differentiate(lambda s: sum(paws(a, b, s, MARKED[LABELLED])), supports[LABELLED])
    torch.testing.assert_close((found[0], found[1][LABELLED]), alone)
    assert (found[1][~LABELLED] == 0).all()
    assert PAWSLoss(ignore_index=-1)(a, b, supports, MARKED) == sum(paws(a, b, supports, MARKED, ignore_index=-1))


@pytest.mark.parametrize("labelled", [0, 1])
def test_next_to_no_labels_is_zero_with_zero_gradient(labelled: int, differentiate: Differentiate) -> None:
    z, labels = randn(5, 4), torch.full((5,), -1)
    labels[:labelled] = 3
    for loss in (suncet, supcon):
        value, grad = differentiate(lambda z: loss(z, labels, ignore_index=-1), z)  # noqa: B023
        assert value == 0
        assert (grad == 0).all()
    value, grad = differentiate(lambda z: suncet(z, labels, ignore_index=-1, label_smoothing=0.1), z)
    assert value.isfinite()
    with pytest.raises(ValueError, match="paws: got"):
        paws(z, z, z, labels, ignore_index=-1)


@pytest.mark.parametrize("loss", [suncet, supcon, lambda z, y, **o: paws(z, z, z, y, **o)])
def test_negative_labels_are_refused_unless_they_are_named(loss: Callable[..., Tensor]) -> None:
    z, labels = randn(4, 3), torch.tensor([0, 0, -1, 1])
    with pytest.raises(
        ValueError, match=r"the smallest label is -1, expected class numbers from 0; pass ignore_index=-1"
    ):
        loss(z, labels)
    with pytest.raises(ValueError, match=r"the smallest label is -2, .* the ignore_index is -1"):
        loss(z, torch.tensor([0, 0, -1, -2]), ignore_index=-1)
    with pytest.raises(TypeError, match="ignore_index is True, expected an integer"):
        loss(z, labels, ignore_index=True)
    for number in (-1, 256):  # in labels of 8 bits, -1 equals 255 and 256 equals 0
        with pytest.raises(ValueError, match=f"ignore_index is {number}, but labels of type torch.uint8 hold 0 to 255"):
            loss(z, torch.tensor([0, 0, 1, 255], dtype=torch.uint8), ignore_index=number)
    with pytest.raises(ValueError, match="the smallest label is -1"):
        count_skipped_anchors(labels)
    largest = torch.tensor([0, 0, 2**63 - 1, 1])
    with pytest.raises(ValueError, match="the largest label is 9223372036854775807, which marks unlabelled samples"):
        loss(z, largest)
    torch.testing.assert_close(loss(z, largest, ignore_index=2**63 - 1), loss(z, labels, ignore_index=-1))


def test_labels_under_vmap_and_compile() -> None:
    z, labels = randn(10, 4), torch.tensor([5, 0, 5, 7, 0, 1, 7, 7, 1, 0])
    many = torch.stack([labels, labels.flip(0)])
    for loss in (suncet, supcon):
        together = torch.vmap(lambda y: loss(z, y))(many)  # noqa: B023
        torch.testing.assert_close(together, torch.stack([loss(z, y) for y in many]))
        together = torch.vmap(lambda z: loss(z, MARKED, ignore_index=-1))(torch.stack([z, z.flip(0)]))  # noqa: B023
        torch.testing.assert_close(together[0], loss(z, MARKED, ignore_index=-1))
        with pytest.raises(ValueError, match="the smallest label is -1"):
            torch.vmap(lambda y: loss(z, y))(many - 1)  # noqa: B023
    counting: list[Callable[[Tensor], Tensor]] = [
        lambda y: suncet(z, y, ignore_index=-1),
        lambda y: suncet(z, y, label_smoothing=0.1),
        lambda y: paws(z, z, z, y)[0],
    ]
    for loss in counting:
        with pytest.raises(RuntimeError, match=r"(suncet|paws): torch\.vmap cannot run over these labels, because"):
            torch.vmap(loss)(many)
