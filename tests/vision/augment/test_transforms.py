"""Dependences of a view, numbers of draws, and what the transforms refuse."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ssl_vision.augment import CropFlip, EvalTransform, SimCLRAugment, ops_simclr
from ssl_vision.augment.draws import Draws, tensorflow_boxes

OPS = ["simclr", "torchvision"]
Transform = Callable[..., Tensor]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Use one thread: for these small tensors, threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def photos(n: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(n)
    return torch.randint(0, 256, (n, 3, height, width), generator=generator, dtype=torch.uint8)


def transforms(size: int) -> list[Transform]:
    """Everything random, with every option that changes the arithmetic."""
    return [
        *(SimCLRAugment(size, ops=ops) for ops in OPS),
        SimCLRAugment(size, brightness="additive", sigma="per_batch"),
        *(CropFlip(size, ops=ops) for ops in OPS),
    ]


# Sizes that fill no vector register evenly, small and large views, small and large images.
SHAPES = [(33, 41, 37), (60, 64, 64), (150, 140, 135)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_default_dtype_makes_no_difference(dtype: torch.dtype) -> None:
    images, ids = photos(3, 40, 36), torch.arange(3)
    expected = [view(images, seed=1, ids=ids) for view in transforms(24)]
    torch.set_default_dtype(dtype)
    try:
        found = [view(images, seed=1, ids=ids) for view in transforms(24)]
    finally:
        torch.set_default_dtype(torch.float32)
    for ours, other in zip(found, expected, strict=True):
        assert ours.dtype == torch.float32
        assert torch.equal(ours, other)


@pytest.mark.parametrize(("size", "height", "width"), SHAPES)
def test_a_view_is_the_same_bits_in_any_company(size: int, height: int, width: int) -> None:
    n = 40 if size < 50 else 9
    images = photos(n, height, width)
    ids = torch.randperm(10**6)[:n]
    some = torch.randperm(n)[: n // 2]
    for transform in transforms(size):
        together = transform(images, seed=5, ids=ids)
        assert together.shape == (n, 3, size, size)
        assert together.dtype == torch.float32
        assert together.is_contiguous()
        assert float(together.min()) >= 0
        assert float(together.max()) <= 1
        assert torch.equal(transform(images[some], seed=5, ids=ids[some]), together[some])
        for i in range(0, n, 5):
            assert torch.equal(transform(images[i : i + 1], seed=5, ids=ids[i : i + 1])[0], together[i])


@pytest.mark.parametrize(("size", "height", "width"), [*SHAPES, (224, 230, 235)])
def test_a_view_is_the_same_bits_with_any_number_of_threads(size: int, height: int, width: int) -> None:
    n = 6 if size < 200 else 3
    images, ids = photos(n, height, width), torch.arange(n)
    for transform in transforms(size):
        views = []
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            views.append(transform(images, seed=1, ids=ids))
        assert torch.equal(views[0], views[1])
        assert torch.equal(views[0], views[2])


def test_images_of_their_own_sizes() -> None:
    sizes = torch.randint(20, 180, (10, 2), generator=torch.Generator().manual_seed(0)).tolist()
    images = [photos(1, height, width)[0] for height, width in sizes]
    ids = torch.arange(10)
    for transform in transforms(48):
        together = transform(images, seed=2, ids=ids)
        alone = [transform(image[None], seed=2, ids=ids[i : i + 1]) for i, image in enumerate(images)]
        assert torch.equal(together, torch.cat(alone))
    for ops in OPS:
        evaluate = EvalTransform(48, ops=ops)
        assert torch.equal(evaluate(images), torch.stack([evaluate(image) for image in images]))


def test_seeds_and_ids_change_the_view() -> None:
    images = photos(1, 32, 32).expand(8, -1, -1, -1)
    ids = torch.arange(8)
    for transform in transforms(32):
        views = transform(images, seed=0, ids=ids)
        assert len({view.numpy().tobytes() for view in views}) == 8
        assert not torch.equal(views, transform(images, seed=1, ids=ids))
        assert torch.equal(views, transform(images, seed=0, ids=ids))


def test_global_random_state_is_neither_used_nor_changed() -> None:
    images, ids = photos(6, 32, 32), torch.arange(6)
    torch.manual_seed(0)
    first = SimCLRAugment(32)(images, seed=3, ids=ids)
    after = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(after, torch.rand(1))
    torch.manual_seed(1)
    assert torch.equal(first, SimCLRAugment(32)(images, seed=3, ids=ids))


def composed(image: Tensor, draws: Draws, i: int, size: int, *, additive: bool) -> Tensor:
    """A view made by the public operations, each of which is compared with recorded values elsewhere."""
    box, flip = torch.from_numpy(draws.boxes[i : i + 1]), torch.from_numpy(draws.flip[i : i + 1])
    x = ops_simclr.crop_resize(image[None], box, size=size, flip=flip)
    ops = (
        ops_simclr.add_brightness if additive else ops_simclr.brightness,
        ops_simclr.contrast,
        ops_simclr.saturation,
        ops_simclr.hue,
    )
    for op in draws.order[i] if draws.jitter[i] else ():
        x = ops[op](x, float(draws.amounts[op, i])).clamp(0, 1)
    x = (ops_simclr.grayscale(x) if draws.gray[i] else x).clamp(0, 1)
    if draws.blur[i]:
        x = ops_simclr.gaussian_blur(x, float(draws.sigma[i]), kernel_size=size // 10).clamp(0, 1)
    return x[0]


@pytest.mark.parametrize("additive", [False, True])
@pytest.mark.parametrize(("size", "n"), [(40, 24), (150, 10)])  # many views a block, and few
def test_a_view_is_its_operations_one_after_the_other(size: int, n: int, additive: bool) -> None:
    augment = SimCLRAugment(size, brightness="additive" if additive else "multiplicative", gray=0.5)
    images = photos(n, 50, 44)
    draws = augment.draw(images, seed=7, ids=torch.arange(n))
    assert draws.jitter.any()
    assert draws.gray.any()
    assert draws.blur.any()
    assert not draws.jitter.all()
    for i, view in enumerate(augment.render(images, draws)):
        expected = composed(images[i], draws, i, size, additive=additive)
        torch.testing.assert_close(view, expected, atol=1e-6, rtol=0)


def test_flip_mirrors_the_crop() -> None:
    image = photos(1, 30, 26)
    box = torch.tensor([[3, 4, 20, 17]])
    plain = ops_simclr.crop_resize(image, box, size=24)
    mirrored = ops_simclr.crop_resize(image, box, size=24, flip=torch.tensor([True]))
    torch.testing.assert_close(mirrored, plain.flip(3), atol=0, rtol=0)


def test_what_is_drawn_how_often() -> None:
    n = 40_000
    ids = torch.arange(n)
    images = photos(1, 32, 32).expand(n, -1, -1, -1)
    draws = SimCLRAugment(32, strength=0.5).draw(images, seed=11, ids=ids)
    margin = 4 * 0.5 / n**0.5  # four standard errors
    for flags, expected in ((draws.flip, 0.5), (draws.jitter, 0.8), (draws.gray, 0.2), (draws.blur, 0.5)):
        assert abs(flags.mean() - expected) < margin
    for a, b in ((draws.flip, draws.jitter), (draws.jitter, draws.gray), (draws.gray, draws.blur)):
        assert abs((a & b).mean() - a.mean() * b.mean()) < margin  # grey does not wait for jitter
    orders, counts = np.unique(draws.order, axis=0, return_counts=True)
    assert len(orders) == 24
    assert np.abs(counts / n - 1 / 24).max() < 4 * (1 / 24 / n) ** 0.5
    uniform = [(0.6, 1.4), (0.6, 1.4), (0.6, 1.4), (-0.1, 0.1)]
    for amounts, (low, high) in zip([*draws.amounts, draws.sigma], [*uniform, (0.1, 2.0)], strict=True):
        places = np.sort((amounts.astype(np.float64) - low) / (high - low))
        assert places[0] >= -1e-6
        assert places[-1] <= 1 + 1e-6
        assert np.abs(places - (np.arange(n) + 0.5) / n).max() < 1.95 / n**0.5
    together = np.corrcoef(np.stack([*draws.amounts, draws.sigma]))
    assert np.abs(together - np.eye(5)).max() < 4 / n**0.5


def test_options_change_what_is_drawn() -> None:
    images, ids = photos(1, 32, 32).expand(1000, -1, -1, -1), torch.arange(1000)

    def draw(**options: Any) -> Draws:
        return SimCLRAugment(32, **options).draw(images, seed=0, ids=ids)

    assert not draw(blur=False).blur.any()
    assert not draw(flip=False).flip.any()
    assert not draw(jitter=0.0).jitter.any()
    assert draw(gray=1.0).gray.all()
    assert draw(strength=1.25).amounts[0].min() >= 0
    assert draw(strength=2.0).amounts[1].min() >= 0
    additive = draw(brightness="additive", strength=0.5).amounts[0]
    assert -0.4 <= float(additive.min()) < -0.38
    assert 0.38 < float(additive.max()) <= 0.4
    one = draw(sigma="per_batch").sigma
    assert len(np.unique(one)) == 1
    assert len(np.unique(draw().sigma)) > 900
    some = SimCLRAugment(32, sigma="per_batch").draw(images[:7], seed=0, ids=ids[500:507]).sigma
    assert some[0] == one[0]


def test_no_crop_is_found_in_a_very_long_image() -> None:
    """TensorFlow then uses the whole image, torchvision a central crop."""
    n = 50
    ids = torch.arange(n)
    whole = tensorflow_boxes(np.full(n, 4), np.full(n, 400), seed=0, ids=ids)
    assert (whole == [0, 0, 4, 400]).all()
    for transform in transforms(16):
        assert torch.isfinite(transform(photos(2, 4, 400), seed=0, ids=ids[:2])).all()


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 7), (31, 1)])
def test_tiny_images(height: int, width: int) -> None:
    images = photos(3, height, width)
    for transform in transforms(8):
        assert torch.isfinite(transform(images, seed=0, ids=torch.arange(3))).all()
    assert torch.isfinite(EvalTransform(8)(images)).all()


def test_an_empty_batch() -> None:
    images = photos(1, 20, 20)[:0]
    for transform in transforms(16):
        assert transform(images, seed=0, ids=torch.arange(0)).shape == (0, 3, 16, 16)
    assert EvalTransform(16)(images).shape == (0, 3, 16, 16)


def test_float_and_bytes_give_the_same_view() -> None:
    images = photos(20, 40, 40)
    ids = torch.arange(20)
    for transform in transforms(32):
        views = transform(images, seed=4, ids=ids)
        torch.testing.assert_close(transform(images / 255, seed=4, ids=ids), views, atol=1e-5, rtol=0)


@pytest.mark.parametrize("ops", OPS)
@pytest.mark.parametrize(
    ("shape", "box"),
    [
        ((500, 375), (86, 24, 328, 328)),
        ((375, 500), (24, 86, 328, 328)),
        ((33, 33), (2, 2, 29, 29)),
        ((20, 32), (0, 0, 20, 32)),
    ],
)
def test_evaluation_cuts_the_centre(ops: str, shape: tuple[int, int], box: tuple[int, int, int, int]) -> None:
    image = photos(1, *shape)
    transform = EvalTransform(24, ops=ops)
    module = ops_simclr if ops == "simclr" else __import__("ssl_vision.augment.ops_torchvision", fromlist=["*"])
    expected = module.crop_resize(image, torch.tensor([box]), size=24).clamp(0, 1)
    assert torch.equal(transform(image), expected)
    assert torch.equal(transform(image[0]), expected[0])


@pytest.mark.parametrize(
    ("images", "ids", "error", "message"),
    [
        (255 * torch.rand(2, 3, 8, 8), torch.arange(2), ValueError, "divide 0..255 by 255"),
        (torch.randn(2, 3, 8, 8), torch.arange(2), ValueError, "normalise by mean and deviation after"),
        (torch.full((2, 3, 8, 8), float("nan")), torch.arange(2), ValueError, r"\[0, 1\]"),
        (torch.rand(2, 3, 8, 8), torch.arange(3), ValueError, r"int64 tensor \[2\]"),
        (torch.rand(2, 3, 8, 8), torch.rand(2), ValueError, r"int64 tensor \[2\]"),
        (torch.rand(2, 3, 8, 8), [0, 1], ValueError, "list"),
        (torch.rand(3, 8, 8), torch.arange(3), ValueError, r"\[N, 3, H, W\]"),
        ([torch.rand(3, 8, 8), torch.zeros(3, 8, 8, dtype=torch.uint8)], torch.arange(2), ValueError, "one dtype"),
        ([np.zeros((3, 8, 8))], torch.arange(1), TypeError, "ndarray"),
    ],
)
def test_refuses_images(images: Any, ids: Any, error: type[Exception], message: str) -> None:
    for transform in (SimCLRAugment(8), CropFlip(8)):
        with pytest.raises(error, match=message):
            transform(images, seed=0, ids=ids)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SimCLRAugment(0), "size"),
        (lambda: SimCLRAugment(2.5), "size"),
        (lambda: CropFlip(-1), "size"),
        (lambda: SimCLRAugment(32, ops="tensorflow"), "'simclr', 'torchvision'"),
        (lambda: SimCLRAugment(32, brightness="add"), "'multiplicative', 'additive'"),
        (lambda: SimCLRAugment(32, sigma="image"), "'per_image', 'per_batch'"),
        (lambda: SimCLRAugment(32, gray=1.2), "gray must be a probability"),
        (lambda: SimCLRAugment(32, jitter=-0.1), "jitter must be a probability"),
        (lambda: SimCLRAugment(32, strength=-1.0), "strength"),
        (lambda: CropFlip(32, ops="x"), "ops"),
        (lambda: EvalTransform(32, ops="x"), "ops"),
        (lambda: EvalTransform(32, crop=0.0), "crop"),
        (lambda: EvalTransform(32, crop=1.5), "crop"),
    ],
)
def test_refuses_settings(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("size", "height", "width"), SHAPES)
def test_the_gpu_makes_the_same_views(size: int, height: int, width: int) -> None:
    images, ids = photos(30, height, width), torch.arange(30)
    for transform in transforms(size):
        here = transform(images, seed=3, ids=ids)
        there = transform(images.cuda(), seed=3, ids=ids.cuda())
        assert there.is_cuda
        torch.testing.assert_close(there.cpu(), here, atol=1e-5, rtol=0)
        assert torch.equal(there, transform(images.cuda(), seed=3, ids=ids))
