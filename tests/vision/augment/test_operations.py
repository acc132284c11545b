"""Colour arithmetic against Python's colorsys in double precision, and what the public functions refuse."""

from __future__ import annotations

import colorsys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

from ssl_vision.augment import ops_simclr, ops_torchvision

MODULES = [ops_simclr, ops_torchvision]


def by_pixel(change: Callable[[float, float, float], tuple[float, float, float]], images: np.ndarray) -> Tensor:
    """Apply a change of (H, S, V) to every pixel of [N, 3, H, W] in double precision."""
    pixels = images.astype(np.float64).transpose(0, 2, 3, 1).reshape(-1, 3)
    changed = [colorsys.hsv_to_rgb(*change(*colorsys.rgb_to_hsv(*pixel))) for pixel in pixels]
    n, _, h, w = images.shape
    return torch.tensor(changed, dtype=torch.float64).view(n, h, w, 3).permute(0, 3, 1, 2)


# Whole 255ths have many ties, arbitrary floats many tiny differences: both are where hue is delicate.
IMAGES = st.one_of(
    hnp.arrays(np.uint8, (1, 3, 4, 5)).map(lambda x: (x / np.float32(255)).astype(np.float32)),
    hnp.arrays(np.float32, (1, 3, 4, 5), elements=st.floats(0, 1, width=32)),
)


@settings(max_examples=60, deadline=None)
@given(images=IMAGES, delta=st.floats(-2, 2))
def test_hue(images: np.ndarray, delta: float) -> None:
    expected = by_pixel(lambda h, s, v: ((h + delta) % 1, s, v), images)
    for module in MODULES:
        got = module.hue(torch.from_numpy(images), delta).double()
        torch.testing.assert_close(got, expected, atol=1.5e-6, rtol=0)  # delta itself is rounded to float32


@settings(max_examples=60, deadline=None)
@given(images=IMAGES, factor=st.floats(0, 4))
def test_saturation_of_hsv(images: np.ndarray, factor: float) -> None:
    expected = by_pixel(lambda h, s, v: (h, min(1.0, s * factor), v), images)
    got = ops_simclr.saturation(torch.from_numpy(images), factor).double()
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)


def test_saturation_of_values_that_a_bicubic_crop_left_outside() -> None:
    """TensorFlow sets S = 0 where V is not positive; V itself is not clipped."""
    pixels = torch.tensor([[-0.1, -0.2, -0.05], [1.1, 0.5, -0.1], [0.0, -0.1, 0.0]]).t()[None, :, :, None]
    pixels[:, :, 0] = pixels[:, :, 0]
    got = ops_simclr.saturation(pixels, 0.5).clamp(0, 1)[0, :, :, 0].t()
    assert torch.equal(got[0], torch.zeros(3))
    # V = 1.1, S = 1.2 / 1.1, halved: V - (V - c) / 2, then clipped.
    torch.testing.assert_close(got[1], torch.tensor([1.0, 0.8, 0.5]))
    assert torch.equal(got[2], torch.zeros(3))


def test_contrasts_pivot_on_different_means() -> None:
    x = torch.rand(2, 3, 5, 6)
    grey = 0.2989 * x[:, :1] + 0.587 * x[:, 1:2] + 0.114 * x[:, 2:]
    for module, mean in (
        (ops_simclr, x.mean((2, 3), keepdim=True)),
        (ops_torchvision, grey.mean((2, 3), keepdim=True)),
    ):
        torch.testing.assert_close(module.contrast(x, 0.3), mean + 0.3 * (x - mean))


def test_identity_amounts_change_nothing() -> None:
    x = torch.rand(3, 3, 8, 8)
    for module in MODULES:
        for op, amount in (
            (module.brightness, 1.0),
            (module.contrast, 1.0),
            (module.saturation, 1.0),
            (module.hue, 0.0),
        ):
            torch.testing.assert_close(op(x, amount), x, atol=5e-7, rtol=0)


def test_functions_leave_their_input_alone() -> None:
    x = torch.rand(2, 3, 8, 8)
    before = x.clone()
    for module in MODULES:
        module.brightness(x, 2.0)
        module.hue(x, 0.3)
        module.grayscale(x)
        module.gaussian_blur(x, 1.0, kernel_size=3)
        module.crop_resize(x, torch.tensor([[0, 0, 8, 8]] * 2), size=4)
    assert torch.equal(x, before)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float64, torch.float16, torch.bfloat16])
def test_dtypes(dtype: torch.dtype) -> None:
    bytes_ = torch.randint(0, 256, (2, 3, 9, 7), dtype=torch.uint8)
    x = bytes_ if dtype == torch.uint8 else (bytes_ / 255).to(dtype)
    as_float = x / 255 if dtype == torch.uint8 else x.float()
    boxes = torch.tensor([[1, 2, 6, 5], [0, 0, 9, 7]])
    for module in MODULES:
        for op in (
            lambda y, m=module: m.contrast(y, 0.5),
            lambda y, m=module: m.gaussian_blur(y, 1.0, kernel_size=3),
            lambda y, m=module: m.crop_resize(y, boxes, size=6),
        ):
            got = op(x)
            assert got.dtype == torch.float32
            torch.testing.assert_close(got, op(as_float), atol=2e-6, rtol=0)


def test_memory_layout_of_the_input_does_not_matter() -> None:
    x = torch.rand(4, 3, 16, 12)
    boxes = torch.tensor([[1, 2, 10, 9]] * 4)
    strided = torch.rand(8, 3, 16, 24)
    strided[::2, :, :, ::2] = x
    for module in MODULES:
        for y in (x.to(memory_format=torch.channels_last), strided[::2, :, :, ::2]):
            assert torch.equal(module.hue(y, 0.1), module.hue(x, 0.1))
            assert torch.equal(module.crop_resize(y, boxes, size=8), module.crop_resize(x, boxes, size=8))


def test_no_gradient_flows() -> None:
    x = torch.rand(2, 3, 8, 8, requires_grad=True)
    for module in MODULES:
        assert not module.hue(x, 0.1).requires_grad
        assert not module.gaussian_blur(x, 1.0, kernel_size=3).requires_grad
        assert not module.crop_resize(x, torch.tensor([[0, 0, 8, 8]] * 2), size=4).requires_grad


def test_large_images_are_cropped_as_small_ones() -> None:
    """Above a size, images are cut before they are resampled, with the same bits."""
    big = torch.randint(0, 256, (3, 3, 160, 150), dtype=torch.uint8)
    boxes = torch.tensor([[20, 30, 90, 80], [0, 0, 100, 110], [7, 9, 31, 17]])
    for module in MODULES:
        whole = module.crop_resize(big, boxes, size=40)
        for image, (top, left, height, width), expected in zip(big, boxes.tolist(), whole, strict=True):
            cut = image[None, :, top : top + height, left : left + width]
            box = torch.tensor([[0, 0, height, width]])
            assert torch.equal(module.crop_resize(cut, box, size=40)[0], expected)


@pytest.mark.parametrize(
    ("images", "amount", "error", "message"),
    [
        (torch.rand(3, 8, 8), 1.0, ValueError, r"\[N, 3, H, W\]"),
        (torch.rand(2, 1, 8, 8), 1.0, ValueError, "repeat the channel"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.int64), 1.0, TypeError, "uint8"),
        (np.zeros((2, 3, 8, 8)), 1.0, TypeError, "ndarray"),
        (torch.rand(2, 3, 8, 8), torch.ones(3), ValueError, r"tensor \[2\]"),
        (torch.rand(2, 3, 8, 8), torch.ones(2, 1), ValueError, r"tensor \[2\]"),
    ],
)
def test_refuses(images: Tensor, amount: float | Tensor, error: type[Exception], message: str) -> None:
    for module in MODULES:
        with pytest.raises(error, match=message):
            module.contrast(images, amount)


def test_refuses_blurs_without_width() -> None:
    for module in MODULES:
        with pytest.raises(ValueError, match=r"sigma must be positive .* got 0"):
            module.gaussian_blur(torch.rand(2, 3, 8, 8), torch.tensor([1.0, 0.0]), kernel_size=3)
        with pytest.raises(ValueError, match="kernel_size must be at least 1"):
            module.gaussian_blur(torch.rand(2, 3, 8, 8), 1.0, kernel_size=0)


@pytest.mark.parametrize(
    "box", [[0, 0, 0, 4], [-1, 0, 4, 4], [5, 0, 4, 4], [0, 6, 4, 3]], ids=["empty", "above", "below", "right"]
)
def test_refuses_boxes_outside(box: list[int]) -> None:
    for module in MODULES:
        with pytest.raises(ValueError, match="box 1 is empty or leaves its 8 x 8 image"):
            module.crop_resize(torch.rand(2, 3, 8, 8), torch.tensor([[0, 0, 8, 8], box]), size=4)
