"""torchvision operations against torchvision itself, called image by image with the same parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms.v2 import functional as F

from ssl_vision.augment import SimCLRAugment, ops_torchvision
from ssl_vision.augment.draws import Draws, torchvision_boxes

TOLERANCE = 2e-6  # of one operation in float32; torchvision goes through HSV and convolutions


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Use one thread: for these small tensors, threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def images() -> Tensor:
    """Noise, and special cases of HSV: black, grey, and pixels with equal channels."""
    torch.manual_seed(0)
    x = torch.rand(12, 3, 40, 53)
    x[0, :, :4] = 0
    x[1] = x[1, :1]
    x[2] = (3 * x[2]).round() / 3
    x[3] = 1
    return x


def one_by_one(op: Callable[[Tensor, float], Tensor], images: Tensor, amounts: Tensor) -> Tensor:
    return torch.stack([op(image, float(amount)) for image, amount in zip(images, amounts, strict=True)])


@pytest.mark.parametrize(
    ("ours", "theirs", "low", "high"),
    [
        (ops_torchvision.brightness, F.adjust_brightness, 0, 2),
        (ops_torchvision.contrast, F.adjust_contrast, 0, 2),
        (ops_torchvision.saturation, F.adjust_saturation, 0, 2),
        (ops_torchvision.hue, F.adjust_hue, -0.5, 0.5),
    ],
)
def test_colour(
    images: Tensor, ours: Callable[..., Tensor], theirs: Callable[..., Tensor], low: float, high: float
) -> None:
    amounts = torch.linspace(low, high, len(images))
    torch.testing.assert_close(ours(images, amounts), one_by_one(theirs, images, amounts), atol=TOLERANCE, rtol=0)


def test_grayscale(images: Tensor) -> None:
    torch.testing.assert_close(
        ops_torchvision.grayscale(images), F.rgb_to_grayscale(images, num_output_channels=3), atol=TOLERANCE, rtol=0
    )


@pytest.mark.parametrize("kernel_size", [3, 9, 23])
def test_blur(images: Tensor, kernel_size: int) -> None:
    sigmas = torch.linspace(0.1, 2, len(images))
    expected = one_by_one(lambda image, sigma: F.gaussian_blur(image, kernel_size, sigma), images, sigmas)
    blurred = ops_torchvision.gaussian_blur(images, sigmas, kernel_size=kernel_size)
    torch.testing.assert_close(blurred, expected, atol=TOLERANCE, rtol=0)


def test_blur_of_an_image_too_small_to_mirror() -> None:
    with pytest.raises(ValueError, match="more than 4 pixels a side"):
        ops_torchvision.gaussian_blur(torch.rand(1, 3, 4, 9), 1.0, kernel_size=9)


@pytest.mark.parametrize("size", [8, 32, 70])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_crop(images: Tensor, size: int, interpolation: str) -> None:
    torch.manual_seed(1)
    n = len(images)
    boxes = torch.stack([torch.randint(low, high, (n,)) for low, high in ((0, 10), (0, 12), (1, 31), (1, 42))], 1)
    flip = torch.arange(n) % 2 == 0
    cropped = ops_torchvision.crop_resize(images, boxes, size=size, flip=flip, interpolation=interpolation)
    for image, box, mirrored, got in zip(images, boxes.tolist(), flip, cropped, strict=True):
        expected = F.resized_crop(
            image, *box, [size, size], interpolation=InterpolationMode(interpolation), antialias=True
        )
        expected = F.horizontal_flip(expected) if mirrored else expected
        torch.testing.assert_close(got, expected, atol=TOLERANCE, rtol=0)


def reference(image: Tensor, draws: Draws, i: int, size: int) -> Tensor:
    """A view made by torchvision."""
    x = F.resized_crop(image, *draws.boxes[i].tolist(), [size, size], antialias=True)
    x = F.horizontal_flip(x) if draws.flip[i] else x
    ops = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)
    for op in draws.order[i] if draws.jitter[i] else ():
        x = ops[op](x, float(draws.amounts[op, i]))
    x = F.rgb_to_grayscale(x, num_output_channels=3) if draws.gray[i] else x
    return F.gaussian_blur(x, 2 * (size // 20) + 1, float(draws.sigma[i])) if draws.blur[i] else x


@pytest.mark.parametrize(("size", "images_used"), [(40, 12), (150, 6)])  # many views a block, and few
def test_whole_views(images: Tensor, size: int, images_used: int) -> None:
    augment = SimCLRAugment(size, ops="torchvision")
    images = images[-images_used:]
    ids = torch.arange(len(images))
    kinds = set()
    for seed in range(4):
        draws = augment.draw(images, seed=seed, ids=ids)
        views = augment.render(images, draws)
        assert torch.equal(views, augment(images, seed=seed, ids=ids))
        for i, (image, view) in enumerate(zip(images, views, strict=True)):
            kinds.add((bool(draws.jitter[i]), bool(draws.gray[i]), bool(draws.blur[i])))
            # A difference after one operation is magnified by the factors of the next ones, up to 1.8 each.
            torch.testing.assert_close(view, reference(image, draws, i, size), atol=1e-5, rtol=0)
    assert len(kinds) >= 5, "hardly any combination of jitter, grey and blur was drawn"


@pytest.mark.parametrize(("height", "width"), [(64, 64), (30, 200)])
def test_boxes(height: int, width: int) -> None:
    n = 4000
    torch.manual_seed(2)
    crop = RandomResizedCrop.get_params
    blank = torch.empty(3, height, width)
    theirs = torch.tensor([crop(blank, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(n)], dtype=torch.float64)
    boxes = torchvision_boxes(np.full(n, height), np.full(n, width), seed=3, ids=torch.arange(n))
    ours = torch.from_numpy(boxes).double()
    for a, b in ((theirs, ours), (theirs[:, 2:].prod(1, keepdim=True), ours[:, 2:].prod(1, keepdim=True))):
        error = (a.var(0) / n + b.var(0) / n).sqrt() + 1e-9
        assert ((a.mean(0) - b.mean(0)).abs() < 4 * error).all()
        assert ((a.std(0) / b.std(0).clamp_min(1e-9) - 1).abs() < 0.1).all()
    assert ((ours[:, :2] >= 0) & (ours[:, :2] + ours[:, 2:] <= torch.tensor([height, width]))).all()
