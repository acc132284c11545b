"""The CRF against the full kernel matrix in float64, and against label maps of the released code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from contrastive_core.errors import UserError
from ssl_medseg.selftraining.crf import SETTINGS, CrfOptions, dense_crf, refine


def by_matrix(image: Tensor, p: Tensor, o: CrfOptions) -> Tensor:
    """[H, W], [C, H, W]: computed over every pair of pixels."""
    h, w = image.shape
    place = torch.stack(torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij"), -1).view(-1, 2).double()
    distance = torch.cdist(place, place)
    value = image.flatten()[:, None]
    smooth = torch.exp(-0.5 * (distance / o.smooth_sigma) ** 2)
    bilateral = torch.exp(
        -0.5 * (distance / o.bilateral_sigma) ** 2 - 0.5 * ((value - value.T) / o.bilateral_intensity) ** 2
    )
    total = torch.zeros_like(smooth)
    for kernel, weight in ((smooth, o.smooth_weight), (bilateral, o.bilateral_weight)):
        norm = kernel.sum(1).rsqrt()
        total += weight * norm[:, None] * kernel * norm
    log_p = p.flatten(1).log()
    q = p.flatten(1)
    for _ in range(o.iterations):
        q = (log_p + q @ total).softmax(0)
    return q.view_as(p)


@pytest.mark.parametrize("sigma", [0.01, 2.0])
def test_against_the_kernel_matrix(sigma: float) -> None:
    g = torch.Generator().manual_seed(0)
    image = torch.rand(2, 1, 12, 17, generator=g, dtype=torch.float64) * 1.4
    p = (torch.randn(2, 3, 12, 17, generator=g, dtype=torch.float64)).softmax(1)
    options = CrfOptions(2.5, 1.0, sigma, 0.2, 1.5, 4)
    ours = dense_crf(image, p, options)
    for i in range(2):
        torch.testing.assert_close(ours[i], by_matrix(image[i, 0], p[i], options), atol=2e-4, rtol=0)
    assert (ours - p).abs().max() > 0.1, "the kernels did nothing"
    torch.testing.assert_close(dense_crf(image.float(), p.float(), options).double(), ours, atol=1e-4, rtol=0)


def dice(a: np.ndarray, b: np.ndarray) -> list[float]:
    return [2 * float(((a == k) & (b == k)).sum()) / float((a == k).sum() + (b == k).sum()) for k in range(4)]


@pytest.mark.parametrize(
    ("recorded_as", "name", "least"),
    [("acdc_mmwhs", "official", 0.96), ("prostate", "official-prostate", 0.99), ("mild", "mild", 0.95)],
)
def test_against_the_released_code(
    golden: Callable[[str], np.lib.npyio.NpzFile], recorded_as: str, name: str, least: float
) -> None:
    """Label maps are compared, not probabilities, because its lattice filter is approximate.

    The setting recorded as "mild" differs from ours; both must keep every structure.
    """
    recorded = golden("medseg")
    image = torch.from_numpy(recorded["crf/img"])[:, None]
    p = torch.from_numpy(recorded["crf/prob"]).permute(0, 3, 1, 2)
    ours, theirs, truth = (
        dense_crf(image, p, SETTINGS[name]).argmax(1).numpy(),
        recorded[f"crf/{recorded_as}"],
        recorded["crf/label"],
    )
    for own, their, true in zip(ours, theirs, truth, strict=True):
        assert min(dice(own, their)) > least
        np.testing.assert_allclose(dice(own, true), dice(their, true), atol=0.02)


def test_a_structure_that_would_be_erased_is_kept_and_said(golden: Callable[[str], np.lib.npyio.NpzFile]) -> None:
    """The released setting removes half of a thin ring from a slice with soft probabilities."""
    recorded = golden("medseg")
    image = torch.from_numpy(recorded["crf/img"])[:, None]
    p = torch.from_numpy(recorded["crf/prob"]).permute(0, 3, 1, 2)
    labels, rejected = refine(image, p, SETTINGS["official"])
    raw = dense_crf(image, p, SETTINGS["official"]).argmax(1)
    before = p.argmax(1)
    lost = [1 - (raw[i] == k).sum() / (before[i] == k).sum() for i in range(2) for k in range(4)]
    assert max(lost[:4]) > 0.5 > max(lost[4:])
    assert rejected.tolist() == [True, False]
    assert torch.equal(labels[0], before[0])
    assert torch.equal(labels[1], raw[1])
    assert refine(image, p, SETTINGS["official"], most_lost=1.0).rejected.tolist() == [False, False]


def test_weights_of_zero_change_nothing() -> None:
    p = torch.randn(1, 3, 8, 8).softmax(1)
    torch.testing.assert_close(dense_crf(torch.rand(1, 1, 8, 8), p, CrfOptions(1, 0, 1, 1, 0, 3)), p)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.ones(1, 8, 8), torch.ones(1, 2, 8, 8)), r"images \[1, 8, 8\], expected \[S, K, H, W\]"),
        ((torch.ones(1, 1, 8, 8), torch.ones(2, 2, 8, 8)), "differ"),
        ((torch.ones(1, 1, 8, 8), torch.ones(1, 2, 8, 9)), "differ"),
    ],
)
def test_wrong_shapes(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dense_crf(*arguments, SETTINGS["mild"])


def test_wrong_settings() -> None:
    with pytest.raises(UserError, match="smooth_sigma of the CRF is 0"):
        CrfOptions(0, 1, 1, 1, 1, 1)
    with pytest.raises(UserError, match="iterations of the CRF is -1"):
        CrfOptions(1, 1, 1, 1, 1, -1)
