"""Augmentation of slices against scipy's interpolation and the papers' ranges; draws depend on images, not batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from contrastive_core.errors import UserError
from ssl_medseg.training.slices import AugmentOptions, deform, jitter_intensity, sampling_places

NOTHING = AugmentOptions(affine=False, elastic=0)
AFFINE = AugmentOptions(elastic=0)
BENT = AugmentOptions(affine=False, elastic_share=1)


def squares(count: int, height: int = 24, width: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(count, 1, height, width, generator=generator)
    return images, torch.randint(0, 3, (count, height, width), generator=generator, dtype=torch.uint8)


def in_pixels(size: tuple[int, int], ids: torch.Tensor, options: AugmentOptions, seed: int = 0) -> torch.Tensor:
    """Return (x, y) of the sampling positions in pixels."""
    places = sampling_places(torch.Size(size), seed=seed, ids=ids, options=options)
    return ((places + 1) * torch.tensor([size[1], size[0]]) - 1) / 2


@pytest.mark.parametrize("options", [AFFINE, BENT, AugmentOptions(elastic_share=1)])
def test_images_and_labels_are_interpolated_as_scipy_does(options: AugmentOptions) -> None:
    images, classes = squares(12)
    ids = torch.arange(100, 112)
    moved, shares = deform(images, classes, num_classes=3, seed=5, ids=ids, options=options)
    places = in_pixels((24, 40), ids, options, seed=5).numpy()
    for n in range(12):
        at = [places[n, ..., 1], places[n, ..., 0]]
        expected = ndimage.map_coordinates(images[n, 0].numpy(), at, order=1, mode="grid-constant")
        np.testing.assert_allclose(moved[n, 0], expected, atol=2e-4)
        for number in (1, 2):
            layer = (classes[n] == number).numpy().astype(np.float32)
            expected = ndimage.map_coordinates(layer, at, order=1, mode="grid-constant")
            np.testing.assert_allclose(shares[n, number], expected, atol=2e-3)
    torch.testing.assert_close(shares.sum(1), torch.ones(12, 24, 40))


def test_nothing_is_nothing() -> None:
    images, classes = squares(4)
    moved, shares = deform(images, classes, num_classes=3, seed=0, ids=torch.arange(4), options=NOTHING)
    torch.testing.assert_close(moved, images, atol=1e-5, rtol=0)
    assert torch.equal(shares.argmax(1), classes.long())


def test_affine_maps_have_the_papers_kinds_ranges_and_shares() -> None:
    """Every map is one of: rotation within 15 degrees, zoom of 0.95 to 1.05, flip, multiple of 45 degrees, nothing."""
    places = in_pixels((33, 33), torch.arange(6000), AFFINE)
    centre, right, below = places[:, 16, 16], places[:, 16, 26], places[:, 26, 16]
    torch.testing.assert_close(centre, torch.full_like(centre, 16), atol=1e-4, rtol=0)
    x, y = (right - centre) / 10, (below - centre) / 10
    determinant = x[:, 0] * y[:, 1] - x[:, 1] * y[:, 0]
    angle = torch.rad2deg(torch.atan2(x[:, 1], x[:, 0]))
    flipped = determinant < 0
    zoomed = ~flipped & ((determinant - 1).abs() > 1e-4)
    turned = ~flipped & ~zoomed & (angle.abs() > 1e-3)
    by_45 = turned & ((angle / 45 - (angle / 45).round()).abs() < 1e-4)
    torch.testing.assert_close(x[flipped], torch.tensor([[-1.0, 0.0]]).expand(int(flipped.sum()), 2), atol=1e-5, rtol=0)
    zoom = x[zoomed].norm(dim=1)
    assert 1 / 1.05 - 1e-4 <= float(zoom.min()) < 0.955
    assert 1.045 < float(zoom.max()) <= 1 / 0.95 + 1e-4
    small = angle[turned & ~by_45].abs()
    assert 14.5 < float(small.max()) <= 15.001
    assert sorted(set(angle[by_45].abs().round().int().tolist())) == [45, 90, 135, 180]
    kinds = torch.stack([flipped, zoomed, turned & ~by_45, by_45]).float().mean(1)
    # A flip happens half of the time it is chosen, a turn is no turn once in eight.
    torch.testing.assert_close(kinds, torch.tensor([0.1, 0.2, 0.2, 0.175]), atol=0.02, rtol=0)


@pytest.mark.parametrize(("side", "deviation"), [(192, 5.0), (48, 1.25)])
def test_bending_is_normal_at_the_knots_in_proportion_to_the_size(side: int, deviation: float) -> None:
    shift = in_pixels((side, side), torch.arange(300), BENT) - in_pixels((side, side), torch.arange(1), NOTHING)
    knots = shift[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert float(knots.std()) == pytest.approx(deviation, rel=0.06)
    assert abs(float(knots.mean())) < 0.1 * deviation
    assert float(shift.diff(dim=1).abs().max()) < 16 * deviation / side  # smooth: two knots apart by half a side


def test_as_many_slices_are_bent_as_the_released_code_bends_on_average() -> None:
    places = in_pixels((32, 32), torch.arange(2000), AugmentOptions(affine=False))
    moved = (places - in_pixels((32, 32), torch.arange(1), NOTHING)).abs().amax((1, 2, 3)) > 1e-4
    assert float(moved.float().mean()) == pytest.approx(0.525, abs=0.035)


def test_draws_belong_to_the_image() -> None:
    images, classes = squares(6)
    ids = torch.tensor([7, 3, 900, 4, 11, 5])
    everything = AugmentOptions(elastic_share=1)
    moved, shares = deform(images, classes, num_classes=3, seed=2, ids=ids, options=everything)
    order = torch.tensor([4, 0, 2])
    again, shares_again = deform(
        images[order], classes[order], num_classes=3, seed=2, ids=ids[order], options=everything
    )
    assert torch.equal(again, moved[order])
    assert torch.equal(shares_again, shares[order])
    other, _ = deform(images, classes, num_classes=3, seed=3, ids=ids, options=everything)
    assert all(not torch.equal(a, b) for a, b in zip(other, moved, strict=True))
    brighter = jitter_intensity(images, seed=2, ids=ids)
    assert torch.equal(jitter_intensity(images[order], seed=2, ids=ids[order]), brighter[order])


def test_intensity_is_the_papers_formula_with_draws_per_image() -> None:
    """x + b, then contrast about the mean, is linear in x: slope c and mean shift b can be read off."""
    images = 0.6 + 0.1 * torch.rand(3000, 1, 6, 6, dtype=torch.float64)
    changed = jitter_intensity(images, seed=0, ids=torch.arange(3000))
    assert float(changed.min()) >= 0
    x, y = images.flatten(1), changed.flatten(1)
    whole = (y.amin(1) > 0) & (y.amax(1) < 1.5)
    x, y = x[whole], y[whole]
    slope = (x - x.mean(1, keepdim=True)).mul(y - y.mean(1, keepdim=True)).sum(1) / x.var(1, correction=0) / 36
    shift = y.mean(1) - x.mean(1)
    torch.testing.assert_close(y, (x - x.mean(1, keepdim=True)) * slope[:, None] + (x.mean(1) + shift)[:, None])
    for values, middle in ((slope, 1.0), (shift, 0.0)):
        assert float(values.mean()) == pytest.approx(middle, abs=0.02)
        assert float(values.min()) == pytest.approx(middle - 0.3, abs=0.005)
        assert float(values.max()) == pytest.approx(middle + 0.3, abs=0.005)
    clipped = jitter_intensity(torch.full((50, 1, 4, 4), 2.0), seed=0, ids=torch.arange(50))
    assert float(clipped.max()) == 1.5


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(UserError, match=r"augment.elastic is -1"):
        AugmentOptions(elastic=-1)
    with pytest.raises(UserError, match=r"augment.elastic_share is 2"):
        AugmentOptions(elastic_share=2)
