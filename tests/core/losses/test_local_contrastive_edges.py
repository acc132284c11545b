"""Edge cases of the local loss: precision, absent classes, sampled anchors, wrong inputs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from contrastive_core import LocalContrastiveLoss, local_contrastive
from contrastive_core.losses.local_contrastive import class_means, draw_anchors

Golden = Callable[[str], np.lib.npyio.NpzFile]
Differentiate = Callable[..., tuple[Tensor, ...]]


def blobs(images: int = 3, classes: int = 4, size: int = 12, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    embedding = torch.randn(images, 6, size, size, generator=g, dtype=torch.float64)
    return embedding, torch.randint(0, classes, (images, size, size), generator=g)


PAIRS = torch.tensor([[0, 1], [2, 2], [1, 2]])


@pytest.mark.parametrize("temperature", [1e-3, 0.1, 10.0])
@pytest.mark.parametrize("variant", ["inter", "intra"])
def test_float32_is_within_a_millionth_of_float64(
    differentiate: Differentiate, temperature: float, variant: Any
) -> None:
    embedding, label = blobs(size=40)
    anchors = draw_anchors(label, num_classes=4, anchors_per_class=3, generator=torch.Generator().manual_seed(0))

    def loss(e: Tensor) -> Tensor:
        return local_contrastive(e, label, pairs=PAIRS, anchors=anchors, temperature=temperature, variant=variant)

    value, grad = differentiate(loss, embedding.float())
    exact, exact_grad = differentiate(loss, embedding.float().double())
    assert value.dtype == torch.float32
    assert abs(value.item() / exact.item() - 1) <= 1e-6
    assert (grad.double() - exact_grad).norm() <= 1e-6 * exact_grad.norm()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_and_autocast(differentiate: Differentiate, dtype: torch.dtype) -> None:
    embedding, label = blobs()
    anchors = draw_anchors(label, num_classes=4, anchors_per_class=3, generator=torch.Generator().manual_seed(0))

    def loss(e: Tensor) -> Tensor:
        return local_contrastive(e, label, pairs=PAIRS, anchors=anchors)

    value, grad = differentiate(loss, embedding.to(dtype))
    exact, exact_grad = differentiate(loss, embedding.to(dtype).float())
    assert (value.dtype, grad.dtype) == (torch.float32, dtype)
    torch.testing.assert_close(value, exact, rtol=1e-6, atol=0)
    torch.testing.assert_close(grad, exact_grad.to(dtype))
    with torch.autocast("cpu", dtype):
        inside = differentiate(loss, embedding.to(dtype).float())
    assert torch.equal(inside[0], exact)
    assert torch.equal(inside[1], exact_grad)


def test_scale_zero_and_nan(differentiate: Differentiate) -> None:
    embedding, label = blobs()
    anchors = draw_anchors(label, num_classes=4, anchors_per_class=3, generator=torch.Generator().manual_seed(0))

    def loss(e: Tensor) -> Tensor:
        return local_contrastive(e, label, pairs=PAIRS, anchors=anchors)

    value = loss(embedding.float())
    for factor in (1e30, 1e-30):
        torch.testing.assert_close(loss(embedding.float() * factor), value)
    with_zeros = embedding.clone()
    image, k = 0, 2
    row, column = anchors[image, k - 1, 0].tolist()
    with_zeros[image, :, row, column] = 0
    with_zeros[1] = torch.where(label[1] == 1, 0.0, with_zeros[1])
    value, grad = differentiate(loss, with_zeros)
    assert value.isfinite()
    assert grad.isfinite().all()
    embedding[0, 0, 3, 3] = math.nan
    assert loss(embedding).isnan()


@pytest.mark.parametrize("variant", ["inter", "intra"])
def test_nan_in_ignored_pixels_has_no_effect(variant: Any, differentiate: Differentiate) -> None:
    embedding, label = blobs()
    label = label.clone()
    label[:, ::2] = label[:, ::2].masked_fill(label[:, ::2] == 3, 255)
    label[:, 0, 0] = 255  # the pixel that stands for anchors of absent classes

    def loss(e: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        return local_contrastive(
            e, label, pairs=PAIRS, variant=variant, num_classes=6, ignore_index=255, generator=generator
        )

    ignored = (label == 255)[:, None]
    found = differentiate(loss, embedding.masked_fill(ignored, math.nan))
    torch.testing.assert_close(found, differentiate(loss, embedding), rtol=1e-12, atol=0)
    assert (found[1].masked_select(ignored) == 0).all()
    assert loss(embedding.masked_fill(~ignored, math.nan)).isnan()


@pytest.mark.parametrize("reduction", ["pair_mean", "official"])
@pytest.mark.parametrize("variant", ["inter", "intra"])
def test_no_foreground_is_zero_with_zero_gradient(differentiate: Differentiate, variant: Any, reduction: Any) -> None:
    embedding, label = blobs()
    for classes in (None, 4):
        value, grad = differentiate(
            lambda e, c=classes: local_contrastive(
                e, torch.zeros_like(label), pairs=PAIRS, variant=variant, reduction=reduction, num_classes=c
            ),
            embedding,
        )
        assert value == 0
        assert (grad == 0).all()


def test_a_pair_without_terms_is_left_out_of_the_mean() -> None:
    embedding, label = blobs()
    label[2] = 0
    anchors = draw_anchors(label, num_classes=4, anchors_per_class=3)
    losses = [
        local_contrastive(embedding, label, pairs=torch.tensor(pairs), anchors=anchors)
        for pairs in ([[0, 1]], [[0, 1], [2, 2]])
    ]
    assert losses[0] == losses[1]


def test_anchors_of_absent_classes_are_not_looked_at() -> None:
    """For these, the official sampler writes 1000."""
    embedding, label = blobs()
    label[0][label[0] == 3] = 0
    anchors = draw_anchors(label, num_classes=4, anchors_per_class=3, generator=torch.Generator().manual_seed(0))
    odd = anchors.clone()
    odd[0, 2] = 1000
    assert torch.equal(
        local_contrastive(embedding, label, pairs=PAIRS, anchors=anchors),
        local_contrastive(embedding, label, pairs=PAIRS, anchors=odd),
    )
    odd[1, 2, 1, 0] = 1000
    with pytest.raises(
        ValueError, match=r"an anchor of class 3 in image 1 is \[1000, \d+\], expected \(row, col\) inside"
    ):
        local_contrastive(embedding, label, pairs=PAIRS, anchors=odd)


def test_drawn_anchors_are_pixels_of_their_class_evenly() -> None:
    label = torch.tensor([[[1, 2, 0, 1], [0, 0, 1, 1], [3, 3, 0, 1]], [[0, 0, 0, 0], [0, 2, 2, 0], [0, 0, 0, 2]]])
    anchors = draw_anchors(label, num_classes=5, anchors_per_class=4000, generator=torch.Generator().manual_seed(0))
    assert anchors.shape == (2, 4, 4000, 2)
    for image in range(2):
        for k in range(1, 5):
            pixels, counts = anchors[image, k - 1].unique(dim=0, return_counts=True)
            there = (label[image] == k).nonzero()
            if len(there) == 0:
                assert (anchors[image, k - 1] == 0).all()
                continue
            assert torch.equal(pixels, there)
            assert (counts / 4000 - 1 / len(there)).abs().max() < 0.03


def test_drawing_follows_the_generator() -> None:
    embedding, label = blobs()

    def loss(seed: int) -> Tensor:
        return local_contrastive(embedding, label, pairs=PAIRS, generator=torch.Generator().manual_seed(seed))

    assert loss(0) == loss(0)
    assert loss(0) != loss(1)
    anchors = draw_anchors(label, num_classes=4, anchors_per_class=3, generator=torch.Generator().manual_seed(0))
    assert loss(0) == local_contrastive(embedding, label, pairs=PAIRS, anchors=anchors)
    torch.manual_seed(3)
    first = local_contrastive(embedding, label, pairs=PAIRS)
    assert first != local_contrastive(embedding, label, pairs=PAIRS)
    torch.manual_seed(3)
    assert first == local_contrastive(embedding, label, pairs=PAIRS)


def test_class_means_of_large_classes_are_exact() -> None:
    embedding = torch.full((1, 1, 300, 300), 0.1)
    means, present = class_means(embedding, torch.ones(1, 300, 300, dtype=torch.uint8), 3)
    torch.testing.assert_close(means[0, 0, 0].item(), embedding[0, 0, 0, 0].item(), rtol=1e-12, atol=0)
    assert present.tolist() == [[True, False]]


def test_module_holds_keywords() -> None:
    embedding, label = blobs()
    anchors = draw_anchors(label, num_classes=4, anchors_per_class=2)
    options: dict[str, Any] = {"variant": "intra", "temperature": 0.3, "reduction": "official", "num_classes": 4}
    module = LocalContrastiveLoss(**options)
    expected = local_contrastive(embedding, label, pairs=PAIRS, anchors=anchors, **options)
    assert torch.equal(module(embedding, label, pairs=PAIRS, anchors=anchors), expected)
    g = [torch.Generator().manual_seed(0) for _ in range(2)]
    drawn = LocalContrastiveLoss(anchors_per_class=5)(embedding, label, pairs=PAIRS, generator=g[0])
    assert drawn == local_contrastive(embedding, label, pairs=PAIRS, anchors_per_class=5, generator=g[1])
    assert "variant='intra', temperature=0.3, reduction='official'" in repr(module)


WRONG: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "integer embedding": ({"embedding": torch.ones(3, 6, 12, 12).long()}, TypeError, "embedding is torch.int64"),
    "float label": ({"label": torch.ones(3, 12, 12)}, TypeError, "label is torch.float32, expected an integer"),
    "one-hot label": ({"label": torch.ones(3, 4, 12, 12).long()}, ValueError, r"expected \[B, E, H, W\] and \[B"),
    "other size": ({"label": torch.ones(3, 24, 24).long()}, ValueError, r"label is \[3, 24, 24\]"),
    "empty": ({"embedding": torch.ones(0, 6, 2, 2), "label": torch.ones(0, 2, 2).long()}, ValueError, "not empty"),
    "negative label": ({"label": -torch.ones(3, 12, 12).long()}, ValueError, "labels range from -1 to -1"),
    "large label": ({"num_classes": 3}, ValueError, r"labels range from 0 to 3, expected 0 \(background\) to 2; pass"),
    "one class": ({"num_classes": 1}, ValueError, "num_classes is 1, expected at least 2"),
    "pairs as list": ({"pairs": [[0, 1]]}, TypeError, "pairs is list, expected an integer tensor"),
    "float pairs": ({"pairs": torch.ones(1, 2)}, TypeError, "pairs is torch.float32"),
    "no pairs": ({"pairs": torch.ones(0, 2).long()}, ValueError, r"expected \[Q, 2\] with at least one pair"),
    "triples": ({"pairs": torch.ones(2, 3).long()}, ValueError, r"pairs have shape \[2, 3\]"),
    "pairs outside": ({"pairs": torch.tensor([[0, 3]])}, ValueError, "range from 0 to 3, expected indices 0 to 2"),
    "negative pairs": ({"pairs": torch.tensor([[0, -1]])}, ValueError, "pairs range from -1 to 0"),
    "float anchors": ({"anchors": torch.ones(3, 3, 2, 2)}, TypeError, "anchors is torch.float32"),
    "anchors of other images": ({"anchors": torch.ones(2, 3, 2, 2).long()}, ValueError, "for the 3 images of the"),
    "no anchors": ({"anchors": torch.ones(3, 3, 0, 2).long()}, ValueError, r"have shape \[3, 3, 0, 2\], expected \[B"),
    "anchors' classes": (
        {"anchors": torch.ones(3, 3, 2, 2).long(), "num_classes": 5}, ValueError, "is 5, but anchors are for 4 classes"
    ),
    "variant": ({"variant": "both"}, ValueError, "variant is 'both', expected 'inter' or 'intra'"),
    "reduction": ({"reduction": "sum"}, ValueError, "reduction is 'sum', expected 'pair_mean' or 'official'"),
    "anchors_per_class": ({"anchors_per_class": 0}, ValueError, "anchors_per_class is 0, expected at least 1"),
    "temperature": ({"temperature": 0.0}, ValueError, "temperature is 0.0"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_wrong_inputs_say_what_was_expected(case: str) -> None:
    wrong, error, message = WRONG[case]
    embedding, label = blobs()
    inputs = {"embedding": embedding, "label": label, "pairs": PAIRS} | wrong
    with pytest.raises(error, match=message):
        local_contrastive(inputs.pop("embedding"), inputs.pop("label"), **inputs)
