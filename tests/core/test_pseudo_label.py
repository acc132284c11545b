"""Pseudo-labels against NumPy, one sample at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from contrastive_core.pseudo_label import PseudoLabels, agreement, class_thresholds, fuse, hard_labels, sharpen


def predictions(*shape: int, seed: int = 0) -> Tensor:
    """Random logits [V, N, C, ...] of this shape."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(deadline=None, max_examples=40)
@given(views=st.integers(1, 4), samples=st.integers(1, 3), classes=st.integers(1, 5), seed=st.integers(0, 999))
def test_fused_is_the_weighted_mean(views: int, samples: int, classes: int, seed: int) -> None:
    logits = predictions(views, samples, classes, 2, 3, seed=seed)
    weights = np.random.default_rng(seed).random(views) + 0.01
    for kind, given_, after in (("probabilities", logits.softmax(2), False), ("logits", logits, True)):
        expected = np.average(given_.numpy(), axis=0, weights=weights)
        if after:
            expected = np.exp(expected) / np.exp(expected).sum(1, keepdims=True)
        for form in (given_, list(given_)):
            ours = fuse(form, weights=weights.tolist(), kind=kind)  # type: ignore[arg-type]
            np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-12)
            np.testing.assert_allclose(ours.sum(1).numpy(), 1.0, rtol=1e-12)
    torch.testing.assert_close(fuse(logits), fuse(logits, weights=[2.5] * views))


def test_a_view_of_weight_zero_does_not_count() -> None:
    logits = predictions(3, 4, 5)
    assert torch.equal(fuse(logits, weights=[0, 1, 0]), logits[1])


def test_what_a_sample_lacks_does_not_count() -> None:
    p = predictions(3, 4, 5, 2).softmax(2)
    present = torch.tensor([[1, 1, 0, 0], [1, 0, 1, 0], [1, 1, 0, 0]]).bool()
    fused = fuse(p, weights=[1, 2, 3], present=present)
    torch.testing.assert_close(fused[0], fuse(p, weights=[1, 2, 3])[0])
    torch.testing.assert_close(fused[1], (p[0, 1] + 3 * p[2, 1]) / 4)
    torch.testing.assert_close(fused[2], p[1, 2])
    assert not fused[3].any()
    torch.testing.assert_close(fuse(p, present=present)[1], (p[0, 1] + p[2, 1]) / 2)
    torch.testing.assert_close(fuse(p.log(), kind="logits", present=present)[2], p[1, 2])
    missing = p.masked_fill(~present[..., None, None], torch.nan).requires_grad_()
    torch.testing.assert_close(fuse(missing, present=present), fuse(p, present=present))
    (gradient,) = torch.autograd.grad(fuse(missing, present=present).square().sum(), missing)
    assert not gradient[~present].any()
    with pytest.raises(ValueError, match=r"present has shape \[3, 3\], expected \[3, 4\]"):
        fuse(p, present=present[:, :3])


def test_agreement_is_the_share_of_the_most_named_class() -> None:
    logits = predictions(5, 6, 3, 4)
    named = logits.argmax(2).numpy()
    for n, pixel in np.ndindex(6, 4):
        expected = np.bincount(named[:, n, pixel]).max() / 5
        assert agreement(logits)[n, pixel].item() == pytest.approx(expected)
    assert (agreement(logits[:1].expand(3, -1, -1, -1)) == 1).all()


def test_sharpened_is_the_softmax_of_scaled_logits() -> None:
    logits = predictions(7, 4, 2)
    for temperature in (0.05, 0.5, 1.0, 3.0):
        expected = (logits / temperature).softmax(1)
        torch.testing.assert_close(sharpen(logits.softmax(1), temperature=temperature), expected)


def test_sharpening_small_numbers(differentiate: Callable[..., tuple[Tensor, ...]]) -> None:
    """Powers of the probabilities themselves would all be 0."""
    p = torch.tensor([[1e-3, 2e-3, 0.0, 0.5], [1e-4] * 4])
    sharp = sharpen(p, temperature=0.01)
    torch.testing.assert_close(sharp, torch.tensor([[0.0, 0.0, 0.0, 1.0], [0.25] * 4]))
    _, grad = differentiate(lambda x: (sharpen(x, temperature=0.25) * torch.arange(4.0)).sum(), p)
    assert grad.isfinite().all()
    assert torch.autograd.gradcheck(
        lambda x: sharpen(x, temperature=0.4), predictions(3, 4).softmax(1).requires_grad_()
    )


def test_hard_labels_and_thresholds() -> None:
    p = predictions(5, 3, 4, 4).softmax(1)
    labels = hard_labels(p, threshold=0.5)
    array = p.numpy()
    np.testing.assert_array_equal(labels.classes.numpy(), array.argmax(1))
    np.testing.assert_array_equal(labels.confidence.numpy(), array.max(1))
    np.testing.assert_array_equal(labels.keep.numpy(), array.max(1) >= 0.5)
    assert 0 < int(labels.keep.sum()) < labels.keep.numel()
    per_class = np.array([0.0, 0.6, 1.1])
    by_class = hard_labels(p, threshold=torch.from_numpy(per_class))
    np.testing.assert_array_equal(by_class.keep.numpy(), array.max(1) >= per_class[array.argmax(1)])


def test_the_threshold_itself_is_kept_and_nan_is_not() -> None:
    p = torch.tensor([[0.75, 0.25], [math.nan, 0.5], [0.5, 0.5]])
    labels = hard_labels(p, threshold=0.75)
    assert labels.keep.tolist() == [True, False, False]
    assert labels.classes[2] == 0


@settings(deadline=None, max_examples=40)
@given(share=st.floats(0.05, 1.0), count=st.integers(1, 60), seed=st.integers(0, 99))
def test_class_thresholds_keep_the_share_of_every_class(share: float, count: int, seed: int) -> None:
    p = predictions(count, 4, seed=seed).softmax(1)
    labels = hard_labels(p)
    kept = hard_labels(p, threshold=class_thresholds(labels, share=share, num_classes=4)).keep
    for number in range(4):
        own = labels.classes == number
        assert int(kept[own].sum()) == (max(1, round(share * int(own.sum()))) if own.any() else 0)
        if own.any() and not kept[own].all():
            assert labels.confidence[own & kept].min() > labels.confidence[own & ~kept].max()


def test_class_thresholds_are_not_lower_than_the_least() -> None:
    labels = PseudoLabels(torch.tensor([0, 0, 1]), torch.tensor([0.9, 0.4, 0.5]), torch.ones(3, dtype=torch.bool))
    thresholds = class_thresholds(labels, share=1.0, num_classes=3, least=0.45)
    torch.testing.assert_close(thresholds, torch.tensor([0.45, 0.5, 0.45]))


WRONG: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "no prediction": (lambda: fuse([]), ValueError, "predictions of shape none, expected one or more"),
    "shapes": (lambda: fuse([torch.ones(2, 3), torch.ones(3, 2)]), ValueError, r"\[2, 3\], \[3, 2\], expected"),
    "not several": (lambda: agreement(torch.ones(2, 3)), ValueError, r"shape \[2, 3\], expected \[V, N, C, ...\]"),
    "integers": (lambda: fuse(torch.ones(2, 3, 4).long()), TypeError, "predictions is torch.int64"),
    "kind": (lambda: fuse(torch.ones(1, 1, 1), kind="both"), ValueError, "kind is 'both'"),  # type: ignore[arg-type]
    "weights": (lambda: fuse(torch.ones(2, 1, 1), weights=[1.0]), ValueError, "expected 2 non-negative numbers"),
    "negative": (lambda: fuse(torch.ones(2, 1, 1), weights=[1.0, -1.0]), ValueError, "non-negative numbers"),
    "all zero": (lambda: fuse(torch.ones(2, 1, 1), weights=[0.0, 0.0]), ValueError, "not all 0"),
    "temperature": (lambda: sharpen(torch.ones(1, 2), temperature=0), ValueError, "sharpen: temperature is 0"),
    "no classes": (lambda: sharpen(torch.ones(2), temperature=1), ValueError, r"shape \[2\], expected \[N, C"),
    "thresholds": (
        lambda: hard_labels(torch.ones(1, 2), threshold=torch.ones(3)), ValueError, r"expected one number or 2, one for"
    ),
    "share": (
        lambda: class_thresholds(hard_labels(torch.ones(1, 2)), share=0, num_classes=2), ValueError, "share is 0"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_wrong_inputs_say_what_was_expected(case: str) -> None:
    call, error, message = WRONG[case]
    with pytest.raises(error, match=message):
        call()
