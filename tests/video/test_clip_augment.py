"""Weak and strong augmentation: constant over time, a function of (seed, clip, view), and allowed for the view."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from contrastive_core.errors import UserError
from ssl_video.augment import (
    OPERATIONS,
    SETS,
    ClipAugment,
    StrongOptions,
    WeakOptions,
    center_clip,
    spread_crops,
    strong_augment,
    weak_crop,
)
from ssl_video.views import NEUTRAL, Clips

VIEWS = ("rgb", "tg")


FULL = StrongOptions(num_ops=2, magnitude=10, cutout=4 / 7, motion_ops="full")


def clips(n: int = 4, *, frames: int = 3, height: int = 40, width: int = 52, seed: int = 0) -> Clips:
    generator = torch.Generator().manual_seed(seed)
    shape = (n, frames, 3, height, width)
    return Clips(*(torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator) for _ in range(2)))


def still(n: int = 6, *, frames: int = 4, size: int = 40) -> Clips:
    """Clips without motion: all frames of a view must remain equal."""
    one = torch.randint(0, 256, (n, 1, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    frames_ = one.expand(-1, frames, -1, -1, -1)
    return Clips(frames_, frames_)


def ids(*numbers: int) -> Tensor:
    return torch.tensor(numbers)


def test_everything_is_constant_over_time() -> None:
    augment = ClipAugment(24, views=VIEWS)
    for seed in range(5):
        for pictures in augment.weak_and_strong(still(), seed=seed, ids=torch.arange(6)):
            for view in VIEWS:
                assert torch.equal(pictures[view], pictures[view][:, :1].expand_as(pictures[view]))


def test_draws_are_a_function_of_seed_clip_and_view() -> None:
    augment, batch = ClipAugment(24, views=VIEWS), clips()
    both = augment.weak_and_strong(batch, seed=3, ids=ids(10, 11, 12, 13))
    turned = Clips(batch.frames.flip(0), batch.following.flip(0))
    again = augment.weak_and_strong(turned, seed=3, ids=ids(13, 12, 11, 10))
    for first, second in zip(both, again, strict=True):
        assert all(torch.equal(first[view], second[view].flip(0)) for view in VIEWS)
    # One clip at a time, of files of any size, gives the same.
    single = [Clips(batch.frames[i : i + 1], batch.following[i : i + 1]) for i in range(4)]
    apart = augment.weak_and_strong(single, seed=3, ids=ids(10, 11, 12, 13))
    assert all(torch.equal(both[1][view], apart[1][view]) for view in VIEWS)
    alone = ClipAugment(24, views=("tg",)).weak_and_strong(batch, seed=3, ids=ids(10, 11, 12, 13))
    assert torch.equal(alone[1]["tg"], both[1]["tg"])
    other = augment.weak(batch, seed=4, ids=ids(10, 11, 12, 13))
    assert not torch.equal(other["rgb"], both[0]["rgb"])


def test_views_share_a_crop_or_do_not() -> None:
    batch = clips(8)
    number = torch.arange(8)
    shared = ClipAugment(24, views=VIEWS).weak(batch, seed=0, ids=number)
    own = ClipAugment(24, views=VIEWS, shared_geometry=False).weak(batch, seed=0, ids=number)
    cropped = weak_crop(batch, size=24, seed=0, ids=number)
    assert torch.equal(shared["tg"], (cropped.frames.float() - cropped.following.float() + 255) / 2)
    same = [torch.equal(shared["rgb"], cropped.frames.float()), torch.equal(own["rgb"], own["tg"])]
    assert same == [True, False]
    gradient_of_own = (own["rgb"] - 0).std() > own["tg"].std()  # and still what it is: of lower contrast
    assert gradient_of_own


def test_weak_crops_are_uniform_in_place_and_scale() -> None:
    # A picture that says where it is: red grows to the right, green downwards.
    ramp = torch.arange(240, dtype=torch.uint8)
    frames = torch.stack(
        [ramp.expand(240, -1), ramp[:, None].expand(-1, 240), torch.zeros(240, 240, dtype=torch.uint8)]
    )
    batch = Clips(frames.expand(200, 1, -1, -1, -1))
    found = weak_crop(batch, size=112, seed=0, ids=torch.arange(200)).frames[:, 0].float()
    spans = (found[:, 0, 56, 108] - found[:, 0, 56, 3]).abs() / 105  # source pixels per pixel
    assert spans.min() >= 240 / (320 / 2) - 0.05
    assert spans.max() <= 240 / (256 / 2) + 0.05
    assert spans.std() > 0.05
    mirrored = (found[:, 0, 56, 3] > found[:, 0, 56, 108]).float().mean()
    assert 0.35 < mirrored < 0.65
    tops = found[:, 1, 0, 56]
    assert tops.min() < 3
    assert tops.max() > 60
    never = weak_crop(batch, size=112, seed=0, ids=torch.arange(200), options=WeakOptions(mirror=0)).frames.float()
    assert (never[:, 0, 0, 56, 3] < never[:, 0, 0, 56, 108]).all()


def test_a_crop_of_the_whole_is_the_whole() -> None:
    batch = clips(2, height=30, width=30)
    found = weak_crop(batch, size=30, seed=0, ids=ids(0, 1), options=WeakOptions(min_scale=1, max_scale=1, mirror=0))
    assert torch.equal(found.frames, batch.frames)
    assert torch.equal(found.following, batch.following)
    everything = weak_crop(
        batch, size=30, seed=0, ids=ids(0, 1), options=WeakOptions(min_scale=1, max_scale=1, mirror=1)
    )
    assert torch.equal(everything.frames, batch.frames.flip(-1))


def test_crops_to_test_on() -> None:
    batch = clips(1, height=20, width=40)
    left, middle, right = spread_crops(batch, size=20)
    assert torch.equal(left.frames, batch.frames[..., :20])
    assert torch.equal(middle.frames, batch.frames[..., 10:30])
    assert torch.equal(right.following, batch.following[..., 20:])
    assert torch.equal(center_clip(batch, size=20).frames, middle.frames)
    tall = Clips(batch.frames.transpose(-1, -2))
    assert torch.equal(spread_crops(tall, size=20)[2].frames, tall.frames[..., 20:, :])
    assert center_clip(clips(1, height=30, width=50), size=18).frames.shape[-2:] == (18, 18)
    plain = ClipAugment(20, views=VIEWS).plain(batch, crops=3)
    assert torch.equal(plain[2]["rgb"], right.frames.float())


def test_strong_changes_enough_and_keeps_the_scale() -> None:
    pictures = torch.rand(32, 2, 3, 28, 28) * 255
    strong = strong_augment(pictures, view="rgb", seed=0, ids=torch.arange(32), options=FULL)
    assert strong.min() >= 0
    assert strong.max() <= 255.001
    assert torch.isfinite(strong).all()
    assert ((strong - pictures).abs().mean(dim=(1, 2, 3, 4)) > 5).all()  # at least the hole
    assert torch.equal(pictures, pictures.clone())


def test_the_hole_shows_nothing() -> None:
    pictures = torch.rand(16, 2, 3, 28, 28) * 255
    options = StrongOptions(num_ops=0)
    for view in ("rgb", "flow", "tg", "audio"):
        strong = strong_augment(pictures, view=view, seed=0, ids=torch.arange(16), options=options)
        hole = (strong != pictures).any(dim=2)
        assert 0.05 < hole.float().mean() < (4 / 7) ** 2 + 0.01
        neutral = torch.tensor(NEUTRAL[view]).view(3, 1)
        values = strong.transpose(1, 2)[hole[:, None].expand(-1, 3, -1, -1, -1)].view(-1)
        assert set(values.round().tolist()) <= set(neutral.round().view(-1).tolist())
    none = strong_augment(
        pictures, view="rgb", seed=0, ids=torch.arange(16), options=StrongOptions(num_ops=0, cutout=0)
    )
    assert torch.allclose(none, pictures)


def test_views_have_operations_of_their_own() -> None:
    assert set(SETS["full"]) == set(OPERATIONS)
    assert set(SETS["geometric"]) | set(SETS["colour"]) == set(OPERATIONS)
    assert not {"invert", "solarize", "equalize", "posterize"} & set(SETS["geometric"])
    options = StrongOptions(num_ops=4, probability=1.0, cutout=0, motion_ops="geometric")
    rest = torch.full((20, 2, 3, 24, 24), 127.5)
    found = strong_augment(rest, view="tg", seed=0, ids=torch.arange(20), options=options)
    assert torch.allclose(found, rest, atol=1e-3)  # wherever rest is moved, there is rest
    full = StrongOptions(num_ops=4, probability=1.0, cutout=0, magnitude=10, motion_ops="full")
    assert not torch.allclose(strong_augment(rest, view="tg", seed=0, ids=torch.arange(20), options=full), rest, atol=1)


@pytest.mark.parametrize("name", list(OPERATIONS))
@pytest.mark.parametrize("strength", [-1.0, 0.1, 1.0])
def test_every_operation_runs_on_float_pictures(name: str, strength: float) -> None:
    x = torch.rand(2, 3, 16, 16)
    found = OPERATIONS[name](x, strength, [0.5, 0.5, 0.0])
    assert found.shape == x.shape
    assert torch.isfinite(found).all()
    if name not in ("autocontrast", "equalize", "invert"):
        assert not torch.allclose(found, x, atol=1e-3) or abs(strength) < 0.2


def test_operations_do_what_they_are_called() -> None:
    x = torch.rand(1, 3, 20, 20)
    assert torch.allclose(OPERATIONS["invert"](x, 1, [0] * 3), 1 - x)
    assert torch.allclose(OPERATIONS["translate_x"](x, 0.5, [0] * 3)[..., 4:], x[..., :-4], atol=1e-4)
    assert torch.allclose(OPERATIONS["brightness"](x, -0.5, [0] * 3), x * 0.55, atol=1e-5)
    assert len(OPERATIONS["posterize"](x, 1, [0] * 3).unique()) <= 16


def test_wrong_options_are_refused() -> None:
    for wrong in ({"num_ops": -1}, {"probability": 2.0}, {"magnitude": 11}, {"cutout": 1.0}):
        with pytest.raises(UserError, match="strong augmentation got"):
            StrongOptions(**wrong)
    with pytest.raises(UserError, match="min_scale"):
        WeakOptions(min_scale=0.5)
    with pytest.raises(UserError, match="mirror"):
        WeakOptions(mirror=2)
    with pytest.raises(ValueError, match="size=0"):
        ClipAugment(0)
