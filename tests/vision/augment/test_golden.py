"""TensorFlow operations against values recorded from the official SimCLR code."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from ssl_vision.augment import EvalTransform, ops_simclr
from ssl_vision.augment.draws import tensorflow_boxes, torchvision_boxes

Golden = Callable[[str], np.lib.npyio.NpzFile]
TOLERANCE = 5e-7
Op = Callable[..., Tensor]


@pytest.fixture
def recorded(golden: Golden) -> Callable[[str], Tensor]:
    """A recorded image as [1, 3, H, W]."""
    file = golden("vision")
    return lambda name: torch.from_numpy(file[f"img/{name}"]).permute(2, 0, 1)[None].contiguous()


def names(golden: Golden, folder: str) -> list[str]:
    """Return the names of the recorded arrays of a folder, without the folder."""
    found = [
        name.removeprefix(f"img/{folder}/") for name in golden("vision").files if name.startswith(f"img/{folder}/")
    ]
    assert found, f"nothing recorded under img/{folder}"
    return found


def check(got: Tensor, expected: Tensor, what: str, *, tolerance: float = TOLERANCE) -> None:
    assert got.shape == expected.shape
    assert got.dtype == torch.float32
    worst = float((got - expected).abs().max())
    assert worst <= tolerance, f"{what}: {worst}"


@pytest.mark.parametrize(
    ("folder", "op"),
    [
        ("brightness_v2_mul", ops_simclr.brightness),
        ("brightness_v1_add", ops_simclr.add_brightness),
        ("contrast", ops_simclr.contrast),
        ("saturation", ops_simclr.saturation),
        ("hue", ops_simclr.hue),
    ],
)
def test_each_colour_operation(golden: Golden, recorded: Callable[[str], Tensor], folder: str, op: Op) -> None:
    amounts = names(golden, folder)
    image = recorded("input_f32")
    for amount in amounts:
        check(op(image, float(amount)), recorded(f"{folder}/{amount}"), f"{folder} {amount}")
    together = op(image.expand(len(amounts), -1, -1, -1), torch.tensor([float(amount) for amount in amounts]))
    expected = torch.cat([recorded(f"{folder}/{amount}") for amount in amounts])
    check(together, expected, f"{folder}, one amount per image")


def test_grayscale(recorded: Callable[[str], Tensor]) -> None:
    check(ops_simclr.grayscale(recorded("input_f32")), recorded("grayscale"), "grayscale")


def test_blur(golden: Golden, recorded: Callable[[str], Tensor]) -> None:
    for name in names(golden, "blur"):
        kernel_size, sigma = name.split("_")
        blurred = ops_simclr.gaussian_blur(
            recorded("input_f32"), float(sigma.removeprefix("s")), kernel_size=int(kernel_size.removeprefix("k"))
        )
        check(blurred, recorded(f"blur/{name}"), name)


def test_crop_and_resize(golden: Golden, recorded: Callable[[str], Tensor]) -> None:
    for name in names(golden, "crop_resize"):
        box = torch.tensor([[int(number) for number in name.split("_")[1:5]]])
        resized = ops_simclr.crop_resize(recorded("big_input_f32"), box, size=32)
        check(resized, recorded(f"crop_resize/{name}"), name)


def test_jitter_in_every_recorded_order(golden: Golden, recorded: Callable[[str], Tensor]) -> None:
    factor, contrast, saturation, hue, addend = golden("vision")["img/jitter/factors"].tolist()
    steps = {
        "0": (ops_simclr.brightness, factor),
        "1": (ops_simclr.contrast, contrast),
        "2": (ops_simclr.saturation, saturation),
        "3": (ops_simclr.hue, hue),
    }
    for name in names(golden, "jitter"):  # nonrand_simclrv2 (or v1), rand_perm1302_simclrv2
        if name == "factors":
            continue
        found = re.fullmatch(r"(?:nonrand|rand_perm(\d{4}))_simclr(v1|v2)", name)
        assert found, f"cannot read the recorded name {name}"
        order, additive = found[1] or "0123", found[2] == "v1"
        image = recorded("input_f32")
        for digit in order:
            op, amount = (ops_simclr.add_brightness, addend) if digit == "0" and additive else steps[digit]
            image = op(image, amount).clamp(0, 1)
        # The recorded float32 values are themselves up to 4.3e-7 from the same four steps in float64.
        check(image, recorded(f"jitter/{name}"), name, tolerance=2 * TOLERANCE)


def test_evaluation(recorded: Callable[[str], Tensor]) -> None:
    transform = EvalTransform(32)
    check(transform(recorded("big_input_f32")), recorded("eval_crop_32"), "central crop")
    small = recorded("eval_nocrop_passthrough")
    assert torch.equal(transform(small), small)


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """The largest difference of the two empirical distributions, in units of the 0.1 % Kolmogorov-Smirnov bound."""
    values = np.concatenate((a, b))
    gap = np.abs(
        np.searchsorted(np.sort(a), values, side="right") / len(a)
        - np.searchsorted(np.sort(b), values, side="right") / len(b)
    ).max()
    return float(gap / (1.95 * np.sqrt((len(a) + len(b)) / (len(a) * len(b)))))


MEASURES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "area": lambda box: box[:, 2] * box[:, 3],
    "height": lambda box: box[:, 2],
    "width": lambda box: box[:, 3],
    "aspect": lambda box: box[:, 3] / box[:, 2],
    "top": lambda box: box[:, 0],
    "left": lambda box: box[:, 1],
    "bottom": lambda box: box[:, 0] + box[:, 2],
    "right": lambda box: box[:, 1] + box[:, 3],
}


@pytest.mark.parametrize(
    ("name", "height", "width"), [("random_crop_boxes_400", 50, 40), ("random_crop_boxes_square64_2000", 64, 64)]
)
def test_boxes_come_from_the_recorded_distribution(golden: Golden, name: str, height: int, width: int) -> None:
    theirs = golden("vision")[f"img/{name}"]
    n = 20_000
    size = (np.full(n, height), np.full(n, width))
    ours = tensorflow_boxes(*size, seed=1, ids=torch.arange(n))
    for what, measure in MEASURES.items():
        assert distance(measure(theirs), measure(ours)) < 1, what
    full = height * width
    assert (ours[:, 2] * ours[:, 3] >= 0.1 * full).all()
    assert (ours[:, 0] + ours[:, 2] <= height).all()
    assert (ours[:, 1] + ours[:, 3] <= width).all()
    if height == width:  # enough was recorded to tell the two libraries apart
        other = torchvision_boxes(*size, seed=1, ids=torch.arange(n))
        assert distance(MEASURES["area"](theirs), MEASURES["area"](other)) > 1
