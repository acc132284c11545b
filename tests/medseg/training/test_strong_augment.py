"""Strong augmentation: draws depend on images, grey values follow the formulas, pixels move as requested."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from contrastive_core.errors import UserError
from contrastive_core.rng import derive, uniform
from ssl_medseg.io.label_map import LabelMap
from ssl_medseg.preprocessing.cases import PreparedCase
from ssl_medseg.training.slices import AugmentOptions, _normal, change_intensity, deform, sampling_places
from tests.medseg.toy_cases import toy_case

STRONG = AugmentOptions(kind="strong")


def slices(count: int = 12, side: int = 32) -> torch.Tensor:
    return torch.rand(count, 1, side, side, generator=torch.Generator().manual_seed(0))


def test_the_draws_of_an_image_do_not_depend_on_the_batch() -> None:
    images, ids = slices(), torch.arange(100, 112)
    classes = (images[:, 0] > 0.5).to(torch.uint8)
    moved, shares = deform(images, classes, num_classes=2, seed=7, ids=ids, options=STRONG)
    changed = change_intensity(images, seed=7, ids=ids, options=STRONG)
    some = torch.tensor([5, 0, 11])
    again, again_shares = deform(images[some], classes[some], num_classes=2, seed=7, ids=ids[some], options=STRONG)
    torch.testing.assert_close(again, moved[some])
    torch.testing.assert_close(again_shares, shares[some])
    torch.testing.assert_close(
        change_intensity(images[some], seed=7, ids=ids[some], options=STRONG), changed[some], atol=1e-6, rtol=1e-5
    )
    assert not torch.allclose(change_intensity(images, seed=8, ids=ids, options=STRONG), changed)


def test_grey_values_follow_the_formula() -> None:
    images, ids = slices(), torch.arange(12)
    changed = change_intensity(images, seed=3, ids=ids, options=STRONG)
    draws = uniform(3, ids, 8).numpy().astype(np.float64)
    noise = uniform(derive(3, "noise"), ids, 32 * 32).numpy().astype(np.float64).reshape(-1, 32, 32)
    noisy = 0
    for image, new, u, z in zip(images[:, 0].double().numpy(), changed[:, 0].numpy(), draws, noise, strict=True):
        x = np.clip(image, 1e-4, None) ** (1.6 ** (2 * u[0] - 1))
        if u[3] < 0.8:
            x = (x - x.mean()) * 1.5 ** (2 * u[1] - 1) + x.mean() + 0.2 * (2 * u[2] - 1)
        if u[5] < 0.4:
            smooth = ndimage.gaussian_filter(x, 1.5, mode="nearest", radius=4)
            x = x + u[4] * (smooth - x)
        if u[7] < 0.4:
            noisy += 1
            x = x + 0.08 * u[6] * math.sqrt(2) * torch.erfinv(torch.from_numpy(2 * z - 1 + 2**-24)).numpy()
        np.testing.assert_allclose(new, x, atol=2e-4)
    assert 0 < noisy < 12


def test_a_draw_at_either_end_is_a_finite_normal_number() -> None:
    ends = _normal(torch.tensor([0.0, 0.5, 1 - 2**-24]))
    assert ends.isfinite().all()
    assert ends[0] < -5
    assert ends[2] > 5
    assert abs(float(ends[1])) < 1e-6


def test_places_are_rotated_scaled_shifted_turned_and_mirrored() -> None:
    options = AugmentOptions(kind="strong", elastic=0, turn=0.25, mirror=0.25)
    places = sampling_places(torch.Size([33, 33]), seed=1, ids=torch.arange(4000), options=options) * 33 / 2
    centre, right, below = places[:, 16, 16], places[:, 16, 26], places[:, 26, 16]
    x, y = (right - centre) / 10, (below - centre) / 10
    scale = x.norm(dim=1)
    assert 1 / 1.34 < scale.min() < 0.8
    assert 1.25 < scale.max() < 1.34
    torch.testing.assert_close((x * y).sum(1), torch.zeros(4000), atol=1e-4, rtol=0)
    assert centre.abs().max() <= 3.31
    mirrored = x[:, 0] * y[:, 1] - x[:, 1] * y[:, 0] < 0
    assert float(mirrored.float().mean()) == pytest.approx(2 * 0.25 * 0.75, abs=0.03)
    upright = AugmentOptions(kind="strong", elastic=0, turn=0, mirror=0)
    places = sampling_places(torch.Size([33, 33]), seed=1, ids=torch.arange(4000), options=upright)
    x = places[:, 16, 26] - places[:, 16, 16]
    angle = torch.atan2(x[:, 1], x[:, 0]).abs() * 180 / math.pi
    assert 29 < angle.max() < 30.1
    both = AugmentOptions(kind="strong", elastic=0, turn=1, mirror=0, rotation=0)
    places = sampling_places(torch.Size([33, 33]), seed=1, ids=torch.arange(400), options=both)
    x = places[:, 16, 26] - places[:, 16, 16]
    quarters = torch.atan2(x[:, 1], x[:, 0]) / (math.pi / 2)
    torch.testing.assert_close(quarters, quarters.round(), atol=1e-3, rtol=0)
    assert len(quarters.round().remainder(4).unique()) == 4


def test_enlargement_has_a_limit_of_its_own() -> None:
    options = AugmentOptions(kind="strong", elastic=0, scale=1.2, enlarge=1.9)
    places = sampling_places(torch.Size([33, 33]), seed=1, ids=torch.arange(4000), options=options) * 33 / 2
    factor = 10 / (places[:, 16, 26] - places[:, 16, 16]).norm(dim=1)
    assert factor.max() == pytest.approx(1.9, abs=0.02)
    assert factor.min() == pytest.approx(1 / 1.2, abs=0.01)
    assert float((factor > 1).float().mean()) == pytest.approx(0.5, abs=0.03)


def test_small_structures_of_a_single_patient_are_enlarged() -> None:
    """The structures of `square` extend over a given fraction of the side; two patients show how sizes vary."""
    labels = LabelMap(("background", "organ"), (0, 1))

    def square(patient: str, side: int) -> PreparedCase:
        label = torch.zeros(3, 64, 64, dtype=torch.uint8)
        label[1, 3 : 3 + side // 2, 50 - side : 50] = 1
        return replace(toy_case(f"{patient}-{side}", slices=3, size=64), patient=patient, label=label)

    def enlarge(*cases: PreparedCase, **given: float) -> float | None:
        return AugmentOptions(kind="strong", **given).for_data(labels, cases, oriented=True).enlarge

    assert enlarge(square("a", 24), square("a", 14)) == pytest.approx(0.65 / (24 / 64))
    assert enlarge(square("a", 6)) == 2
    assert enlarge(square("a", 40)) == 1.33
    assert enlarge(square("a", 24), square("b", 14)) == 1.33
    assert enlarge(square("a", 24), enlarge=1.5) == 1.5


def test_slices_are_turned_only_if_their_orientation_is_unknown() -> None:
    labels, case = LabelMap(("background", "organ"), (0, 1)), toy_case("a", slices=3, size=64)
    turns = {
        (oriented, given): AugmentOptions(turn=given).for_data(labels, [case], oriented=oriented).turn
        for oriented in (True, False)
        for given in (None, 0.5)
    }
    assert turns == {(True, None): 0.0, (False, None): 0.25, (True, 0.5): 0.5, (False, 0.5): 0.5}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"enlarge": 0.5}, "augment.enlarge is 0.5; expected a factor"),
        ({"turn": 1.5}, "augment.turn is 1.5; expected a fraction"),
        ({"noise": -1}, "augment.noise is -1"),
        ({"gamma": 0.5}, "augment.gamma is 0.5; expected a factor"),
    ],
)
def test_settings_out_of_range_are_refused(changed: dict[str, float], said: str) -> None:
    with pytest.raises(UserError, match=said):
        AugmentOptions(**changed)  # type: ignore[arg-type]
